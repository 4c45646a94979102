"""What learners show, and its drawing: by the pixels, and by what is known of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from torch import nn

import distmeta
from distmeta.figures.learner_pictures import _used_rows, draw
from distmeta.learners.inner_loop import adaptation_curve
from distmeta.learners.pictures import Attention, Curves, Fit, Gallery, Heatmaps, Reliability
from distmeta.seeding import rng
from distmeta.types import TaskRef

BLUE, RED, GREEN = (0x2F, 0x6F, 0xA7), (0xC8, 0x55, 0x3D), (0x5B, 0x8C, 0x5A)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((abs(picture - colour).max(-1) <= 2).any())


def images(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((count, channels, 8, 8))


# -- drawing ---------------------------------------------------------------------------------------------------------


def test_a_fit_shows_the_curve_the_points_and_both_predictions(tmp_path):
    x, support = np.linspace(-5, 5, 100)[:, None], np.array([[-3.0], [0.0], [2.0]])
    fit = Fit("one sinusoid", support, np.sin(support), x, np.sin(x), 0.1 * x, np.sin(x) + 0.3)
    picture = pixels(draw(fit, tmp_path / "plots" / "sine.png"))
    assert all(has(picture, colour) for colour in (BLUE, RED, (0x8A, 0x8F, 0x98)))


def test_a_reliability_picture_has_points_where_there_are_predictions(tmp_path):
    def drawn(observed, count, name):
        bins = np.arange(4) / 4 + 0.125
        return pixels(draw(Reliability("t", bins, observed, [0.01] * 4, count, "x", "y", "note"), tmp_path / name))

    full, same = (drawn([0.1, 0.3, 0.6, 0.9], [5, 5, 5, 5], name) for name in ("a.png", "b.png"))
    empty = drawn([0.1, 0.3, 0.6, 0.9], [5, 0, 5, 5], "c.png")
    unlike = drawn([0.1, 0.9, 0.6, 0.9], [5, 0, 5, 5], "d.png")
    assert has(full, BLUE)
    assert (full == same).all()
    assert (full != empty).any()
    assert (empty == unlike).all()  # the share of an empty bin is no number


def test_curves_have_a_panel_per_kind_of_number(tmp_path):
    per_task = np.random.default_rng(0).random((3, 20))
    names = ("accuracy", "baseline_accuracy", "loss", "bits_per_sequence")
    one, four = (
        pixels(
            draw(Curves("t", "shots", [1, 2, 10], dict.fromkeys(names[:count], per_task)), tmp_path / f"{count}.png")
        )
        for count in (1, 4)
    )
    assert has(one, BLUE)
    assert has(four, RED)  # the second of the accuracies
    assert four.shape[1] > 2.5 * one.shape[1]  # accuracy, loss and bits


@pytest.mark.parametrize("x", [[1], [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50]])
def test_curves_of_one_and_of_many_values(x, tmp_path):
    rows = np.random.default_rng(0).random((len(x), 10))
    assert has(pixels(draw(Curves("t", "steps", x, {"accuracy": rows}), tmp_path / "c.png")), BLUE)


def test_attention_frames_the_right_cells_and_darkens_the_heavy_ones(tmp_path):
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    right = weights.astype(bool)
    seen = pixels(draw(Attention("t", images(2), images(2), weights, right), tmp_path / "a.png"))
    flat = pixels(draw(Attention("t", images(2), images(2), weights / 20, right), tmp_path / "b.png"))
    none = pixels(draw(Attention("t", images(2), images(2), weights, ~right & right), tmp_path / "n.png"))
    assert has(seen, GREEN)
    assert not has(none, GREEN)
    assert has(seen, (8, 48, 107))  # the darkest of the blues
    assert not has(flat, (8, 48, 107))


def test_heatmaps_share_the_time_axis(tmp_path):
    panels = {"read weights": np.eye(20), "write weights": np.eye(20)[::-1]}
    seen = pixels(draw(Heatmaps("copy", "time", panels), tmp_path / "h.png"))
    assert has(seen, (0, 0, 0))
    assert seen.shape[0] > pixels(draw(Heatmaps("copy", "time", {"one": np.eye(20)}), tmp_path / "1.png")).shape[0]


def memory(steps=9, slots=40):
    """Write and read weights that walk through slots 5 to 15 of 40."""
    outputs = np.full((3, steps), np.nan)
    outputs[:, 4:] = 1.0
    eye = np.eye(slots)
    return {"outputs": outputs, "write weights": eye[:, 5 : 5 + steps], "read weights": eye[:, 7 : 7 + steps]}


def test_of_a_memory_the_used_slots_are_drawn_and_the_same_of_every_head():
    assert _used_rows(memory()) == (4, 17)
    assert _used_rows({"inputs": np.ones((4, 9))}) == (0, 4)
    assert _used_rows({"write weights": np.full((40, 9), 1 / 40)}) == (0, 40)
    spill = memory()
    spill["read weights"][39, 0] = 0.2  # a moment's uncertainty at the other end is not worth half a picture
    assert _used_rows(spill) == (4, 17)


def test_what_is_not_scored_is_left_blank(tmp_path):
    blank = pixels(draw(Heatmaps("copy", "time", memory()), tmp_path / "a.png"))
    full = pixels(draw(Heatmaps("copy", "time", memory() | {"outputs": np.eye(3, 9)}), tmp_path / "b.png"))
    assert has(blank, (0xE2, 0xE9, 0xF3))
    assert not has(full, (0xE2, 0xE9, 0xF3))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gallery_frames_wrong_rows_only(channels, tmp_path):
    rows = images(6, channels).reshape(3, 2, channels, 8, 8)
    captions = [["query", "0.12"]] * 3
    fine = pixels(draw(Gallery("t", rows, captions, [True] * 3, ("image", "nearest")), tmp_path / "f.png"))
    wrong = pixels(draw(Gallery("t", rows, captions, [True, False, True]), tmp_path / "w.png"))
    assert has(wrong, RED)
    assert channels == 3 or not has(fine, RED)


def test_anything_else_is_refused(tmp_path):
    with pytest.raises(TypeError, match="ndarray is no picture"):
        draw(np.eye(2), tmp_path / "x.png")  # type: ignore[arg-type]


# -- what learners show ----------------------------------------------------------------------------------------------


def shown(learner, tasks, count=12):
    bound = learner.bind(tasks.spec).with_config(vectorise="vmap")
    episodes = tasks.episodes([TaskRef("meta_test", 0, i) for i in range(count)], 0)
    params = bound.init_meta_params(rng(0, "init"))
    return bound.for_evaluation(), params, episodes


@pytest.mark.parametrize(
    "learner",
    [
        distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01, test_inner_steps=3),
        distmeta.Reptile(distmeta.mlp((8,)), inner_lr=0.01, test_inner_steps=3),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_the_adaptation_curve_is_that_of_evaluation(learner):
    evaluator, params, episodes = shown(learner, distmeta.Sinusoids())
    curve = evaluator.pictures(params, episodes)["adaptation"]
    assert list(curve.x) == [0, 1, 2, 3]
    np.testing.assert_allclose(curve.values["loss"][3], evaluator.evaluate(params, episodes)["loss"], rtol=1e-5)
    assert len({float(np.mean(row)) for row in curve.values["loss"]}) == 4
    plain = torch.nn.functional.mse_loss(evaluator.forward(params, episodes.query_x[0]), episodes.query_y[0])
    assert curve.values["loss"][0][0] == pytest.approx(float(plain), rel=1e-5)


def test_a_long_inner_loop_is_looked_at_in_few_places(digits_dir):
    tasks = distmeta.FewShot(digits_dir, ways=3, queries=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    evaluator, params, episodes = shown(distmeta.Reptile(model, inner_steps=2), tasks, 3)
    curve = adaptation_curve(lambda k: evaluator.with_config(inner_steps=k), 60, params, episodes, at_once=2)
    assert (curve.x[0], curve.x[-1]) == (0, 60)
    assert len(curve.x) <= 13
    assert [len(row) for row in curve.values["accuracy"]] == [3] * len(curve.x)


@pytest.mark.parametrize(("ways", "shots"), [(3, 1), (4, 2)])
def test_attention_is_over_the_support_set_and_the_accuracy_follows_from_it(ways, shots, digits_dir):
    tasks = distmeta.FewShot(digits_dir, ways=ways, shots=shots, queries=2)
    learner = distmeta.MatchingNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)))
    evaluator, params, episodes = shown(learner, tasks, 2)
    picture = evaluator.pictures(params, episodes)["attention"]
    weights = np.asarray(picture.weights)
    assert weights.shape == (ways, ways * shots)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(picture.right), np.kron(np.eye(ways), np.ones(shots)).astype(bool))
    one = episodes.map(lambda part: part[0]).counted()
    by_class = weights.reshape(ways, ways, shots).sum(-1)
    expected = evaluator.query_logits(params, one).exp().detach()[::2]  # the first query of each class
    np.testing.assert_allclose(by_class, expected, rtol=1e-4)


def test_inputs_that_are_no_images_have_no_attention_picture():
    @distmeta.task_distribution
    def points(random, split):
        x = random.normal(size=(6, 2)) + np.repeat(np.eye(2), 3, 0)[[0, 3, 1, 2, 4, 5]]
        return x[:2], np.arange(2), x[2:], np.array([0, 0, 1, 1])

    evaluator, params, episodes = shown(distmeta.MatchingNet(nn.Linear(2, 4)), points, 2)
    assert evaluator.pictures(params, episodes) == {}


# -- at the end of a run ---------------------------------------------------------------------------------------------


class Watcher(distmeta.ProtoNet):
    """A learner of somebody else's that shows something of its own."""

    def pictures(self, params, episodes):
        return {"mine": Heatmaps("support of the first task", "pixel", {"x": episodes.support_x[0].flatten(1)})}


def run(learner, digits_dir, folder: Path, watch=lambda event: None) -> Path:
    experiment = distmeta.Experiment(
        learner=learner,
        tasks=distmeta.FewShot(digits_dir, ways=3, queries=2),
        outer=distmeta.Outer(iterations=1, meta_batch_size=2),
        evaluation=distmeta.Evaluation(every=0, test_tasks=4),
    )
    return distmeta.meta_train(experiment, run_dir=folder, place=distmeta.Place(watch=watch)).run_dir


def test_a_run_leaves_what_its_learner_shows_and_notes_it_for_tracking(digits_dir, tmp_path):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    folder = run(Watcher(encoder), digits_dir, tmp_path / "run")
    assert pixels(folder / "mine.png").shape[2] == 3
    noted = json.loads((folder / "tracking.json").read_text())
    assert "mine.png" in json.dumps(noted)


class Clumsy(distmeta.ProtoNet):
    """A learner whose picture cannot be made."""

    def pictures(self, params, episodes):
        raise ZeroDivisionError("no pixels")


def test_a_picture_that_fails_is_said_and_the_run_is_whole(digits_dir, tmp_path):
    said = []
    folder = run(Clumsy(nn.Sequential(nn.Flatten(), nn.Linear(64, 16))), digits_dir, tmp_path / "run", said.append)
    assert "Clumsy.pictures() failed: ZeroDivisionError: no pixels" in [event.text for event in said]
    assert distmeta.inspect_run(folder)["status"] == "finished"


def test_a_learner_with_nothing_to_show_leaves_no_picture_but_its_reliability(digits_dir, tmp_path):
    folder = run(distmeta.ProtoNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 16))), digits_dir, tmp_path / "run")
    assert {path.name for path in folder.glob("*.png")} == {"curves.png", "reliability.png"}


class Capped(distmeta.Sinusoids):
    """Regression of one number on one number with fewer queries than its picture asks for."""

    class Config(distmeta.Sinusoids.Config):
        queries: Annotated[int, Field(ge=1, le=50)] = 10


class TrainOnly(distmeta.Sinusoids):
    splits = ("meta_train",)

    def draw(self, split, random):
        assert split == "meta_train"
        return super().draw(split, random)


@pytest.mark.parametrize(("tasks", "said"), [(Capped(), ["The fit failed"]), (TrainOnly(), [])])
def test_a_fit_that_cannot_be_drawn_does_not_fail_the_run(tasks, said, tmp_path):
    events = []
    experiment = distmeta.Experiment(
        learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
        tasks=tasks,
        outer=distmeta.Outer(iterations=1, meta_batch_size=2),
        evaluation=distmeta.Evaluation(every=0, test_tasks=4),
    )
    distmeta.meta_train(experiment, run_dir=tmp_path / "run", place=distmeta.Place(watch=events.append))
    assert distmeta.inspect_run(tmp_path / "run")["status"] == "finished"
    assert [event.text[: len("The fit failed")] for event in events if "failed" in event.text] == said
