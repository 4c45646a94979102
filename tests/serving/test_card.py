"""The card reads well: names as they are, results with intervals, no settings that say nothing."""

import pytest

from distmeta.data.preprocessing import Preprocessing
from distmeta.run.record import LearnedFrom
from distmeta.serving.card import card_text
from distmeta.types import TaskSpec

CARD = {
    "name": "maml_glyphs",
    "created": "2026-11-26T08:00:00+00:00",
    "learner": {"kind": "MAML", "vectorise": "auto", "inner_lr": 0.4, "test_inner_steps": None, "batch_norm": "batch"},
    "tasks": {"kind": "FewShot", "data": "glyphs", "ways": 5, "augment": None},
    "dataset": {"name": "glyphs", "fingerprint": "ab" * 32, "licence": "Bitstream Vera", "origin": "fonts | more"},
    "step": 100,
    "params_sha256": "cd" * 32,
    "test": {"accuracy": 0.9, "accuracy_ci95": 0.01, "accuracy_non_transductive": 0.85, "my_own": 3.0},
}
SPEC = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
FACTS = LearnedFrom(SPEC, Preprocessing((1, 28, 28), "uint8", ink=True))


def test_the_card_of_a_picture_learner():
    text = card_text(CARD, FACTS, ["torch==2.13.0"])
    assert text.startswith("# maml_glyphs\n\nMAML, trained by distmeta on 2026-11-26; parameters of step 100")
    assert "| Learner | inner_lr 0.4, batch_norm batch |" in text
    assert "| Tasks of the training | FewShot, ways 5 |" in text
    assert "| Origin of the data | fonts \\| more |" in text
    assert "| Licence of the data | Bitstream Vera |" in text
    assert "| accuracy, all queries in one batch (transductive) | 0.9000 | 0.8900 to 0.9100 |" in text
    assert "| accuracy, each query alone | 0.8500 |  |" in text
    assert "| my_own | 3.0000 |  |" in text
    assert "grey pictures, drawings in ink; those on a light background are inverted; files of any size" in text
    assert "`torch==2.13.0`" in text
    assert "None" not in text
    assert "\\_" not in text  # "maml\_glyphs" was what people read


@pytest.mark.parametrize(
    ("spec", "made", "takes", "use"),
    [
        (TaskSpec((6,), 3, "classification", 6, 6), Preprocessing((6,)), "rows of 6 numbers", "[[0.1, 2.0]"),
        (TaskSpec((1,), 1, "regression", 6, 6), Preprocessing((1,)), "rows of 1 numbers", "predictor.adapt(x, y)"),
        (
            TaskSpec((5,), 2, "sequence", 0, 6),
            Preprocessing((5,)),
            "sequences of inputs [5]",
            "predictor.run(sequence)",
        ),
        (SPEC, Preprocessing((3, 8, 9), "float32"), "RGB pictures 9 x 8 as floats", '["a1.png", "b1.png"]'),
    ],
)
def test_each_kind_of_learner_has_its_words(spec, made, takes, use):
    text = card_text({**CARD, "test": None}, LearnedFrom(spec, made))
    assert takes in text
    assert use in text
    assert "The run was not tested." in text


def test_a_name_is_text_and_no_markup():
    text = card_text({"name": "<b>*x*</b> _y_\n# z"}, FACTS)
    assert text.splitlines()[0] == "# \\<b\\>\\*x\\*\\</b\\> \\_y\\_ \\# z"
    assert "not stated" in text
