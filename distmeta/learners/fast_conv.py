"""2-d convolutions of many tasks as one grouped, channels-last convolution, differentiable any number of times.

A convolution is linear in its input x and in its weights w. With its two adjoints::

    conv(x, w) -> y,  conv_x(g, w) -> dx,  conv_w(x, g) -> dw
    <conv(x, w), g> = <x, conv_x(g, w)> = <w, conv_w(x, g)>

the derivatives of each of the three are the other two. So every term of every derivative is one kernel of its own,
where torch's double backward builds convolutions with kernels as large as the image, task by task.

G tasks with weights of their own are the groups of one convolution. Its tensors lie in memory as ``[N, H, W, G, C]``:
on CPUs the channels-last kernels are up to five times as fast as those for ``[N, G, C, H, W]`` where strides are 2 or
inputs have one channel. Results keep that layout, elementwise functions after them too, so that the next convolution
copies nothing. Convolutions with few positions are products with columns of x instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.autograd import Function

from distmeta.learners.one_level import call, joined, one_level, parted

_UNREAD: ContextVar[bool] = ContextVar("distmeta_unread_weight_gradients", default=False)


@contextlib.contextmanager
def unread_weight_gradients() -> Iterator[None]:
    """Leave out the values of gradients for kernels that are leaves: they are differentiated, and read by nobody."""
    token = _UNREAD.set(True)
    try:
        yield
    finally:
        _UNREAD.reset(token)


class Geometry(NamedTuple):
    """What a convolution does besides its weights, each as (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def outputs(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result for inputs of ``size``."""
        height, width = (
            (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, k, s, p, d in zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return height, width


def conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry) -> torch.Tensor:
    """``F.conv2d`` by the functions of this module.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[O, C / groups, kh, kw]``.
        bias: ``[O]``, or ``None``.
        geometry: strides, paddings, dilations and groups.

    Returns:
        ``[N, O, Ho, Wo]``.

    Example:
        >>> geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
        >>> conv2d(torch.ones(1, 1, 2, 3), torch.ones(2, 1, 2, 2), None, geometry).tolist()
        [[[[4.0, 4.0]], [[4.0, 4.0]]]]
    """
    level = one_level()
    if level is not None and level.is_mapped(x):  # as the rule of vmap below, without its views
        with level.outside():
            if level.is_mapped(weight) or level.is_mapped(bias):
                fronts = [v if v is None else level.front(v) for v in (x, weight, bias)]
                found = call(_Conv, *fronts, geometry)
            else:
                images = level.front(x).flatten(0, 1)[None]
                found = call(_Conv, images, weight[None], None if bias is None else bias[None], geometry)
                found = found.unflatten(1, (level.members, -1)).squeeze(0)
        return level.mapped(found)
    y: torch.Tensor = call(_Conv, x[None], weight[None], None if bias is None else bias[None], geometry)
    return y.squeeze(0)  # not y[0], whose derivative fills a tensor with zeros first


# -- kernels: x [G, N, C, H, W], g [G, N, O, Ho, Wo], and weights [G or 1, O, C / groups, kh, kw]


def _stacked(w: torch.Tensor, tasks: int) -> torch.Tensor:
    """``[G or 1, O, ...]`` as ``[G O, ...]`` in channels-last memory."""
    if len(w) == tasks and (tasks == 1 or w.stride(0)):  # not one expanded
        return w.reshape(-1, *w.shape[2:]).contiguous(memory_format=torch.channels_last)
    return w[0].permute(0, 2, 3, 1).repeat(tasks, 1, 1, 1).permute(0, 3, 1, 2)


def _images(x: torch.Tensor) -> torch.Tensor:
    """:func:`joined`, so that torch takes one channel too for channels-last memory, and keeps to it in the result."""
    x = joined(x)
    return x if x.shape[1] > 1 else x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))


def _by_columns(images: int, outputs: Sequence[int], w_shape: Sequence[int], geo: Geometry) -> bool:
    """Whether a product with the columns of x is faster than the grouped kernel.

    The grouped kernel brings the weights into an order of its own and back: more work than the product itself where a
    task has few positions. Measured on CPUs with AVX-512 and with AVX2; above the limit either is the faster one by a
    few percent, and columns take nine times the memory.
    """
    return geo.groups == 1 and min(w_shape[1:3]) >= 8 and images * outputs[0] * outputs[1] <= 32


def _columns(x: torch.Tensor, kernel: Sequence[int], outputs: Sequence[int], geo: Geometry) -> torch.Tensor:
    """``[G, N, C, H, W]`` as ``[G, N Ho Wo, kh kw C]``: what each position of the result is a product of."""
    tasks, n, channels, height, width = x.shape
    (down, right), (top, left), (a, b) = geo.stride, geo.padding, geo.dilation
    rim = x.new_zeros(tasks, n, height + 2 * top, width + 2 * left, channels)
    rim[:, :, top : top + height, left : left + width] = x.permute(0, 1, 3, 4, 2)
    task, image, row, column, _ = rim.stride()
    windows = rim.as_strided(
        (tasks, n, *outputs, *kernel, channels),
        (task, image, row * down, column * right, row * a, column * b, 1),
    )
    return windows.reshape(tasks, n * outputs[0] * outputs[1], -1)


def _forward(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, geo: Geometry) -> torch.Tensor:
    tasks, n = x.shape[:2]
    if bias is None and x.is_cpu:
        outputs = geo.outputs(x.shape[3:], w.shape[3:])
        if _by_columns(n, outputs, w.shape, geo):
            rows = torch.bmm(_columns(x, w.shape[3:], outputs, geo), _flat(w, tasks).transpose(1, 2))
            # In the layout of the other kernel's results.
            return parted(joined(rows.view(tasks, n, *outputs, -1).permute(0, 1, 4, 2, 3)), tasks)
    b = None if bias is None else bias.expand(tasks, -1).reshape(-1)
    # Not torch.conv2d, which the mode replaces by what has called this.
    y = torch.convolution(
        _images(x), _stacked(w, tasks), b, geo.stride, geo.padding, geo.dilation, False, [0, 0], tasks * geo.groups
    )
    return parted(y, tasks)


def _backward(
    g: torch.Tensor, x: torch.Tensor, w: torch.Tensor, tasks: int, geo: Geometry, wanted: int
) -> torch.Tensor:
    mask = [wanted == i for i in range(3)]
    found: torch.Tensor = torch.ops.aten.convolution_backward.default(
        g, x, w, None, geo.stride, geo.padding, geo.dilation, False, [0, 0], tasks * geo.groups, mask
    )[wanted]
    return found


def _flat(w: torch.Tensor, tasks: int) -> torch.Tensor:
    """``[G or 1, O, C, kh, kw]`` as ``[G, O, kh kw C]``."""
    return w.permute(0, 1, 3, 4, 2).flatten(2).expand(tasks, -1, -1)


def _from_columns(
    columns: torch.Tensor, size: tuple[int, int], kernel: Sequence[int], outputs: Sequence[int], geo: Geometry
) -> torch.Tensor:
    """The adjoint of :func:`_columns`: ``[G, N, C, H, W]`` of ``size``."""
    tasks = len(columns)
    parts = columns.view(tasks, -1, *outputs, *kernel, columns.shape[2] // (kernel[0] * kernel[1]))
    (height, width), (rows, across) = size, outputs
    (down, right), (top, left), (a, b) = geo.stride, geo.padding, geo.dilation
    rim = columns.new_zeros(parts.shape[1], height + 2 * top, width + 2 * left, tasks, parts.shape[-1])
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y, x = i * a, j * b
            window = rim[:, y : y + (rows - 1) * down + 1 : down, x : x + (across - 1) * right + 1 : right]
            window += parts[:, :, :, :, i, j].permute(1, 2, 3, 0, 4)
    return rim[:, top : top + height, left : left + width].contiguous().permute(3, 0, 4, 1, 2)


def _for_shape(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """A tensor of which only the shape and the layout are read."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _adjoint_x(g: torch.Tensor, w: torch.Tensor, size: tuple[int, int], geo: Geometry) -> torch.Tensor:
    tasks, outputs = len(g), g.shape[3:]
    if g.is_cpu and _by_columns(g.shape[1], outputs, w.shape, geo):
        rows = g.permute(0, 1, 3, 4, 2).reshape(tasks, -1, g.shape[2])
        return _from_columns(torch.bmm(rows, _flat(w, tasks)), size, w.shape[3:], outputs, geo)
    x = _for_shape(g, g.shape[1], tasks * w.shape[2] * geo.groups, *size)
    return parted(_backward(_images(g), x, _stacked(w, tasks), tasks, geo, 0), tasks)


def _adjoint_w(x: torch.Tensor, g: torch.Tensor, size: tuple[int, int], shared: bool, geo: Geometry) -> torch.Tensor:
    tasks, outputs = len(g), g.shape[2]
    if x.is_cpu and _by_columns(g.shape[1], g.shape[3:], (1, outputs, x.shape[2], *size), geo):
        columns = _columns(x, size, g.shape[3:], geo)
        rows = g.permute(0, 1, 3, 4, 2).reshape(tasks, -1, outputs)
        dw = torch.bmm(rows.transpose(1, 2), columns).view(tasks, outputs, *size, -1)
        return (dw.sum(0, keepdim=True) if shared else dw).permute(0, 1, 4, 2, 3)
    w = _for_shape(g, tasks * outputs, x.shape[2] // geo.groups, *size)
    # Kept in channels-last memory: so are the weights after a step along it.
    dw = _backward(_images(g), _images(x), w, tasks, geo, 1).permute(0, 2, 3, 1)
    dw = dw.reshape(tasks, outputs, *dw.shape[1:])
    return (dw.sum(0, keepdim=True) if shared else dw).permute(0, 1, 4, 2, 3)


# -- their derivatives


class _Conv(Function):
    """y of x, w and bias ``[G or 1, O]``."""

    @staticmethod
    def forward(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, geo: Geometry) -> torch.Tensor:
        return _forward(x, w, bias, geo).data  # no view of another tensor: models may change it in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, w, bias, ctx.geo = inputs
        ctx.biases = None if bias is None else len(bias)
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = call(_ConvX, g, w, tuple(x.shape[3:]), ctx.geo)
        if ctx.needs_input_grad[1]:
            # A leaf's gradient is read by no other function of the graph; that of other weights may be.
            function = _UnreadConvW if _UNREAD.get() and w.is_leaf else _ConvW
            dw = call(function, x, g, tuple(w.shape[3:]), len(w) < len(x), ctx.geo)
        if ctx.needs_input_grad[2]:
            db = g.sum((1, 3, 4))
            db = db.sum(0, keepdim=True) if ctx.biases < len(g) else db
        return dx, dw, db, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor | None,
        geo: Geometry,
    ) -> tuple[torch.Tensor, int]:
        x = _mapped(x, in_dims[0], info.batch_size)
        own = in_dims[1] is not None or in_dims[2] is not None
        if own:
            w = _mapped(w, in_dims[1], info.batch_size)
            bias = None if bias is None else _mapped(bias, in_dims[2], info.batch_size)
        join = _Join.of(x, w, own)
        if own:
            w, bias = w.flatten(0, 1), None if bias is None else bias.flatten(0, 1)
        return join.apart(call(_Conv, join.images(x), w, bias, geo)), 0


class _ConvX(Function):
    """dx of g and w, for x of ``size``."""

    @staticmethod
    def forward(g: torch.Tensor, w: torch.Tensor, size: tuple[int, int], geo: Geometry) -> torch.Tensor:
        return _adjoint_x(g, w, size, geo)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        g, w, _, ctx.geo = inputs
        ctx.save_for_backward(g, w)

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        g, w = ctx.saved_tensors
        to_g = to_w = None
        if ctx.needs_input_grad[0]:
            to_g = call(_Conv, u, w, None, ctx.geo)
        if ctx.needs_input_grad[1]:
            to_w = call(_ConvW, u, g, tuple(w.shape[3:]), len(w) < len(g), ctx.geo)
        return to_g, to_w, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        g: torch.Tensor,
        w: torch.Tensor,
        size: tuple[int, int],
        geo: Geometry,
    ) -> tuple[torch.Tensor, int]:
        g, own = _mapped(g, in_dims[0], info.batch_size), in_dims[1] is not None
        w = _mapped(w, in_dims[1], info.batch_size) if own else w
        join = _Join.of(g, w, own)
        w = w.flatten(0, 1) if own else w
        return join.apart(call(_ConvX, join.images(g), w, size, geo)), 0


class _ConvW(Function):
    """dw of x and g, for kernels of ``size``; ``shared``: summed over the G tasks."""

    @staticmethod
    def forward(x: torch.Tensor, g: torch.Tensor, size: tuple[int, int], shared: bool, geo: Geometry) -> torch.Tensor:
        return _adjoint_w(x, g, size, shared, geo)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, g, _, _, ctx.geo = inputs
        ctx.save_for_backward(x, g)

    @staticmethod
    def backward(ctx: Any, v: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, g = ctx.saved_tensors
        to_x = to_g = None
        if ctx.needs_input_grad[0]:
            to_x = call(_ConvX, g, v, tuple(x.shape[3:]), ctx.geo)
        if ctx.needs_input_grad[1]:
            to_g = call(_Conv, x, v, None, ctx.geo)
        return to_x, to_g, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        g: torch.Tensor,
        size: tuple[int, int],
        shared: bool,
        geo: Geometry,
    ) -> tuple[torch.Tensor, int]:
        x, g = (_mapped(v, d, info.batch_size) for v, d in zip((x, g), in_dims[:2], strict=True))
        # One result for each member of the map, of G tasks or of each of them.
        join = _Join(info.batch_size, x.shape[1], 1 if shared else None)
        dw = call(_ConvW, join.images(x), join.images(g), size, False, geo)
        return dw.reshape(info.batch_size, 1 if shared else x.shape[1], *dw.shape[1:]), 0


class _UnreadConvW(_ConvW):
    """A dw that is only differentiated: linear in x and g, so that its value is in no derivative; zeros instead."""

    @staticmethod
    def forward(x: torch.Tensor, g: torch.Tensor, size: tuple[int, int], shared: bool, geo: Geometry) -> torch.Tensor:
        return x.new_zeros(()).expand(1 if shared else len(g), g.shape[2], x.shape[2] // geo.groups, *size)


def _mapped(x: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


class _Join:
    """How the T members of a map, of G tasks each, become the tasks of one call.

    Args:
        members: T.
        tasks: G.
        folded: ``None``: there are T G tasks. 0: members share the weights of each task, so that they are more images
            of it. 1: the tasks of a member share weights, and are more images of one task.
    """

    def __init__(self, members: int, tasks: int, folded: int | None) -> None:
        self.members, self.tasks, self.folded = members, tasks, folded

    @classmethod
    def of(cls, x: torch.Tensor, w: torch.Tensor, own: bool) -> _Join:
        """For ``x [T, G, N, ...]`` and weights ``[T, G or 1, ...]``, or ``[G or 1, ...]`` where members share them."""
        if own:
            return cls(len(x), x.shape[1], 1 if w.shape[1] < x.shape[1] else None)
        return cls(len(x), x.shape[1], 0)

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, G, N, ...]`` as the call takes it."""
        if self.folded is None:
            return x.flatten(0, 1)
        return (x if self.folded else x.transpose(0, 1)).flatten(1, 2)

    def apart(self, y: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`images`."""
        if self.folded is None:
            return y.reshape(self.members, self.tasks, *y.shape[1:])
        if self.folded:
            return y.reshape(self.members, self.tasks, -1, *y.shape[2:])
        return y.reshape(self.tasks, self.members, -1, *y.shape[2:]).transpose(0, 1)
