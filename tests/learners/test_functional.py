"""What a model is wrapped in while it is vectorised."""

from torch.overrides import _get_current_function_mode_stack

from distmeta.learners.exact_norms import ExactNorms
from distmeta.learners.functional import vectorised


def exact():
    return sum(isinstance(mode, ExactNorms) for mode in _get_current_function_mode_stack())


def test_exact_norms_are_entered_once_however_deep():
    with vectorised(True):
        with vectorised(True):
            assert exact() == 1
            with vectorised(False), vectorised(True):
                assert exact() >= 1
        assert exact() == 1
    assert exact() == 0
    with vectorised(False):
        assert exact() == 0


def test_first_derivatives_need_no_exact_norms():
    with vectorised(True, exact_norms=False), vectorised(True):
        assert exact() == 0
