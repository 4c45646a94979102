"""The report's page from its record: what a reader finds in it, in words, and that no text of a user becomes markup."""

from __future__ import annotations

import base64
import io
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distmeta.figures import svg
from distmeta.figures.picture_texts import picture_text
from distmeta.figures.report_page import letters, page_of_run, page_of_runs
from distmeta.figures.report_record import Pairing, RunReport, ShownPicture
from distmeta.figures.svg import Series
from distmeta.figures.thumbnails import file_address, matrix_address, picture_address
from distmeta.intervals import EvaluationReport, paired
from distmeta.learners.pictures import Attention, Curves, Fit, Gallery, Heatmaps, Reliability

HOSTILE = """<script>alert(1)</script>"'&{{ 7*7 }}"""


class Document(HTMLParser):
    """The tags, the text and the ids of a page; tags that are not closed in order are an error."""

    VOID = {"meta", "img", "br", "line", "circle", "rect", "polyline", "polygon"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def png(width: int = 300, height: int = 150) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(content, "PNG")
    return content.getvalue()


def query(answer: int, probability: float = 0.9, of_right: float = 0.9) -> dict[str, Any]:
    image = picture_address(np.eye(8))
    return {"picture": image, "answer": answer, "probability": probability, "of_right": of_right}


def example(name: str = "cat", index: int = 0, hardest: str = "") -> dict[str, Any]:
    def support() -> list[dict[str, Any]]:
        return [{"picture": picture_address(np.eye(8))}]

    wrong = query(1, 0.62, 0.3)
    return {
        "kind": "classification",
        "index": index,
        "split": "meta_test",
        "hardest": hardest,
        "right": 3,
        "of": 4,
        "baseline": {"baseline_accuracy": 0.5},
        "more_classes": 0,
        "classes": [
            {"label": 0, "name": name, "support": support(), "more_support": 0, "queries": [query(0), wrong],
             "more_queries": 0},
            {"label": 1, "name": "dog", "support": support(), "more_support": 2, "queries": [query(1)],
             "more_queries": 7},
        ],
    }  # fmt: skip


def report(**changes: Any) -> RunReport:
    random = np.random.default_rng(0)
    metrics = {
        "accuracy": np.clip(0.9 + 0.05 * random.normal(size=40), 0, 1),
        "baseline_accuracy": np.clip(0.5 + 0.05 * random.normal(size=40), 0, 1),
        "loss": np.abs(random.normal(size=40)),
    }
    rows = [{"step": i, "time": 0.0, "train/loss": 2.0 / i, "runtime/tasks_per_second": 50.0} for i in range(1, 41)]
    rows += [{"step": 40, "time": 0.0, "validation/loss": 0.1, "validation/loss_ci95": 0.01}]
    split = {"classes": 2, "images": 40, "fewest": 20, "most": 20, "names": ["cat", "dog"]}
    record = RunReport(
        name="demo",
        folder="demo-run",
        learner="MAML",
        tasks="2-way 1-shot tasks of pets",
        status="finished",
        error=None,
        created="2026-01-02T03:04:05+00:00",
        step=40,
        iterations=40,
        best_step=40,
        test=EvaluationReport("meta_test", 0, metrics),
        chance=0.5,
        policy="batch",
        rows=rows,
        pictures=(ShownPicture("adaptation", "adaptation", "adaptation. accuracy: 50 % at 0.", png(), 300, 150),),
        examples=(example(),),
        dataset={
            "name": "pets",
            "licence": "CC0",
            "fingerprint": "ab" * 32,
            "input_shape": [1, 8, 8],
            "stored_as": "uint8, shape 1 x 8 x 8",
            "splits": {"meta_train": split, "meta_test": split},
            "provenance": {"source": "a shelter"},
            "classes_disjoint": True,
            "images": 80,
            "identical": [{"first": "meta_train", "second": "meta_test", "images": 0, "example": []}],
        },
        settings={"learner.inner_lr": 0.4, "tasks.ways": 2},
        environment={"torch": "2.13.0"},
        command="distmeta train job.py --set tasks.ways=2",
        job="job.py",
        warnings=("meta_test has 2 classes: the interval says little.",),
        missing=(),
        task_settings={"fingerprint": "ab"},
        task_digests=("1",),
    )
    return replace(record, **changes)


# -- one run ----------------------------------------------------------------------------------------------------------


def test_the_page_states_result_data_command_and_doubts():
    run = report()
    page = Document(page_of_run(run))
    assert run.test is not None
    mean = f"{100 * run.test.mean('accuracy'):.2f} %"
    better = paired(*(EvaluationReport("meta_test", 0, {"accuracy": run.test.metrics[k]}) for k in run.test.metrics
                      if "accuracy" in k))["accuracy"]  # fmt: skip
    for words in (
        mean,
        "Mean over 40 meta_test tasks with its 95 % interval; guessing reaches 50 %",
        f"+{100 * better.mean:.2f} points ± {100 * better.ci95:.2f} compared with nearest neighbour on raw inputs",
        "50 tasks/s (median)",
        "CC0",
        "ab" * 32,
        "No class name is in two splits.",
        "No picture is in both meta_train and meta_test.",
        "distmeta train job.py --set tasks.ways=2",
        "learner.inner_lr",
        "2.13.0",
        "meta_test has 2 classes",
        "a shelter",
    ):
        assert words in page.text, words


def test_the_page_is_self_contained_has_no_script_and_its_parts_are_named():
    source = page_of_run(report())
    page = Document(source)
    assert source.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>demo: report</title>" in source
    assert {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags} == set()
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert "url(" not in source
    assert "@import" not in source
    assert all(image["alt"] for image in page.all("img"))
    assert all(one.get("aria-label") or one.get("aria-hidden") == "true" for one in page.all("svg"))
    assert any("default-src 'none'" in (one.get("content") or "") for one in page.all("meta"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_right_and_wrong_differ_by_more_than_colour():
    page = Document(page_of_run(report()))
    texts = [image["alt"] for image in page.all("img")]
    assert "query 2 of class A (cat), answered B with 62 %: wrong" in texts
    assert "query 1 of class A (cat), answered A with 90 %: right" in texts
    assert "✗ B 62 %" in re.sub(r"\s+", " ", page.text)
    assert "Task 0 of meta_test: 3 of 4 right (75.0 %)" in page.text
    assert "2 more support examples and 7 more queries not shown" in page.text


def test_no_text_of_a_user_becomes_markup_or_template():
    split = {"classes": 1, "images": 1, "fewest": 1, "most": 1, "names": [HOSTILE]}
    dataset = report().dataset | {
        "name": HOSTILE, "licence": HOSTILE, "splits": {"meta_train": split}, "provenance": {HOSTILE: [HOSTILE]},
        "identical": [{"first": "meta_train", "second": "meta_test", "images": 2, "example": [HOSTILE, HOSTILE]}],
    }  # fmt: skip
    hostile = report(
        name=HOSTILE,
        folder=HOSTILE,
        learner=HOSTILE,
        tasks=HOSTILE,
        status=HOSTILE,
        error=HOSTILE,
        dataset=dataset,
        settings={HOSTILE: HOSTILE},
        environment={HOSTILE: HOSTILE},
        command=HOSTILE,
        warnings=(HOSTILE,),
        missing=(HOSTILE,),
        policy=HOSTILE,
        test=EvaluationReport("meta_test", 0, {HOSTILE: np.ones(12), "accuracy": np.ones(12)}),
        pictures=(ShownPicture("x", HOSTILE, HOSTILE, png(), 3, 2),),
        examples=(example(HOSTILE, hardest=HOSTILE),),
    )
    other = replace(hostile, test=None)
    found = Pairing(0, 1, {}, 0, HOSTILE)
    for source in (page_of_run(hostile), page_of_runs([hostile, other], [found])):
        page = Document(source)
        assert "script" not in {tag for tag, _ in page.tags}
        assert "<script" not in source
        assert "49" not in page.text.replace("{{ 7*7 }}", "")
        assert HOSTILE in page.text
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_a_leak_is_marked():
    shared = [{"first": "meta_train", "second": "meta_test", "images": 3, "example": ["cat", "dog"]}]
    page = Document(page_of_run(report(dataset=report().dataset | {"identical": shared})))
    assert "3 pictures are in both meta_train and meta_test, byte for byte" in page.text
    assert "the classes 'cat' and 'dog'" in page.text
    assert any(one.get("class") == "bad" for one in page.all("li"))
    large = {name: value for name, value in report().dataset.items() if name != "identical"} | {"images": 5_000_000}
    assert "not checked, the dataset has 5,000,000 pictures" in Document(page_of_run(report(dataset=large))).text


def test_a_run_without_a_result_states_what_is_missing():
    bare = report(
        test=None, status="interrupted", step=None, best_step=None, examples=(), pictures=(), rows=(), command="",
        environment={}, dataset={"name": "pets", "fingerprint": "ab" * 32, "splits": {}},
        missing=("There is no result yet: the run is interrupted.",), warnings=(),
    )  # fmt: skip
    page = Document(page_of_run(bare))
    assert "There is no result yet" in page.text
    assert "started from Python" in page.text
    assert "Result" not in page.text


def test_a_model_that_has_diverged_has_a_page_without_broken_charts():
    metrics = {"accuracy": np.full(12, np.nan), "loss": np.full(12, np.inf)}
    rows = [{"step": i, "time": 0.0, "train/loss": np.nan} for i in range(3)]
    source = page_of_run(report(test=EvaluationReport("meta_test", 0, metrics), rows=rows))
    assert not re.search(r'="-?(nan|inf)', source)
    assert "nan %" in Document(source).text


def test_the_same_record_gives_the_same_bytes():
    assert page_of_run(report()) == page_of_run(report())


# -- other kinds of tasks ---------------------------------------------------------------------------------------------


def shown(**record: Any) -> Document:
    head = {"index": 0, "split": "meta_test", "hardest": "", "baseline": {}}
    return Document(page_of_run(report(examples=(head | record,))))


def test_vectors_are_profiles_and_very_short_ones_numbers():
    one = example()
    for part in one["classes"]:
        for x in (*part["support"], *part["queries"]):
            del x["picture"]
            x["values"] = [0.0, 1.0, 0.5, -1.0]
    page = shown(**one)
    assert sum(svg.get("class") == "profile" for svg in page.all("svg")) == 5
    one["classes"][0]["support"][0]["values"] = [0.25, -1.0]
    assert "(0.25, -1)" in shown(**one).text


def test_regression_has_its_error_and_a_chart_in_words():
    record = {
        "kind": "regression", "error": 0.125, "support": 2, "outputs": 1, "target": [0.0, 1.0], "answer": [0.1, 0.6],
        "baseline": {"baseline_loss": 0.5},
    }  # fmt: skip
    curve = {"x": [0.0, 1.0], "support_x": [0.5], "support_y": [0.5], "curve_x": [0.0, 1.0], "curve_y": [0.1, 0.6]}
    for one in (record, record | curve):
        page = shown(**one)
        assert "mean squared error 0.125" in page.text
        assert "predicting the mean of the support targets: 0.5" in page.text
        assert any("2 queries, mean squared error 0.125" in (part.get("aria-label") or "") for part in page.all("svg"))


def test_a_likelihood_is_the_result_beside_the_exact_one_and_the_loss_is_not():
    likelihood = np.linspace(0.5, 1.5, 40)
    metrics = {"log_likelihood": likelihood, "loss": -likelihood, "exact_log_likelihood": likelihood + 0.25}
    text = Document(page_of_run(report(test=EvaluationReport("meta_test", 0, metrics)))).text
    assert re.search(r"Result 1\.0000 ± 0\.\d+ log-likelihood of a target, nats", text)
    assert "-0.2500 ± 0.0000 compared with log-likelihood of the exact posterior" in text
    assert "log likelihood of a task" in text


def test_sequences_of_bits_and_of_labels():
    panel = {"name": "wrong bits", "rows": 2, "steps": 3, "picture": matrix_address([[0, 1, np.nan], [1, 0, np.nan]])}
    page = shown(kind="bits", wrong=2, of=4, panels=[panel])
    assert "2 of 4 bits wrong (50.0 %)" in page.text
    assert page.all("img")[-1]["alt"] == "wrong bits: 2 rows, 3 time steps; 2 of 4 bits are wrong"
    steps = [{"label": [0], "answer": [1], "probability": 0.5, "occurrence": 1, "picture": picture_address(np.eye(4))}]
    page = shown(kind="labels", right=0, of=1, names=["cat", "dog"], steps=steps)
    assert page.all("img")[-1]["alt"] == "step 1: class A (cat), occurrence 1, answered B with 50 %: wrong"
    with pytest.raises(ValueError, match="no kind of task 'other'"):
        shown(kind="other")


# -- several runs -----------------------------------------------------------------------------------------------------


def test_runs_side_by_side_with_their_differences_and_the_settings_that_differ():
    a = report()
    b = report(folder="other", settings={"learner.inner_lr": 0.1, "outer.lr": 1.0, "tasks.ways": 2})
    assert a.test is not None
    assert b.test is not None
    pairing = Pairing(0, 1, {"accuracy": paired(a.test, b.test)["accuracy"]}, 40)
    page = Document(page_of_runs([a, b], [pairing]))
    for words in ("A: demo-run", "B: other", "40 tasks that both were tested on", "+0.00 points ± 0.00",
                  "no clear difference", "learner.inner_lr", "outer.lr"):  # fmt: skip
        assert words in page.text, words
    assert "tasks.ways" not in page.text.replace("--set tasks.ways=2", "")
    assert "A demo-run: validation" in page.text
    apart = Pairing(0, 1, {}, 0, "the runs were tested on other tasks: tasks.shots is 1 and 5")
    assert "tasks.shots is 1 and 5" in Document(page_of_runs([a, b], [apart])).text
    assert letters(27)[-1] == "27"


# -- parts ------------------------------------------------------------------------------------------------------------


def test_charts_leave_out_what_is_not_finite_and_an_exploded_step():
    values = [1.0, np.nan, np.inf, 0.5]
    drawn = svg.chart([Series("a", [0, 1, 2, 3], values)], x_label="x", y_label="y", text="t")
    points = re.search(r'<polyline class="c0" points="([^"]+)"', drawn)
    assert points is not None
    assert len(points[1].split()) == 2
    assert "nan" not in drawn
    assert "inf" not in drawn
    calm = [*np.linspace(0.5, 1.5, 60), 1e6]
    ticks = re.findall(
        r'class="end">([^<]+)<', svg.chart([Series("", range(61), calm)], x_label="", y_label="", text="")
    )
    assert max(map(float, ticks)) < 5
    assert "<svg" in svg.chart([], x_label="x", y_label="y", text="nothing")


def test_thumbnails_are_small_and_keep_colours_and_blanks():
    def pixels(address: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))

    assert pixels(picture_address(np.eye(8))).getpixel((0, 0)) == 0  # ink is dark
    red = np.zeros((3, 200, 100))
    red[0, :50] = 1.0
    with pixels(picture_address(red)) as image:
        assert (image.format, image.size) == ("JPEG", (48, 96))
        low, high = image.getpixel((10, 80)), image.getpixel((10, 5))
        assert low < (20, 20, 20)
        assert high > (230, 0, 0)
    assert pixels(matrix_address([[np.nan, 1.0]])).getpixel((0, 0)) == (255, 0)
    assert file_address(png()).startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (Curves("t", "steps", range(30), {"loss": [[float(i)] for i in range(30)]}), "loss over steps: 0.0000 at 0"),
        (
            Attention("t", np.zeros((1, 1, 2, 2)), np.zeros((2, 1, 2, 2)), [[0.75, 0.25]], [[True, False]]),
            "75.0 % of the weight is on their own class",
        ),
        (Heatmaps("t", "time", {"memory": np.zeros((3, 5))}), "memory (3 rows, 5 columns)"),
        (Gallery("t", np.zeros((2, 2, 1, 4, 4)), [["", ""]] * 2, [True, False]), "2 rows of 2 pictures, 1 of the 2"),
        (
            Reliability("t", [0.2, 0, 0.8], [0.1, 0, 0.9], [0.05, 0, 0.02], [3, 0, 7], "sure", "right", "ece 0.1"),
            "ece 0.1. right over sure, of 10 predictions: 20.0 %: 10.0 % ± 5.0, 80.0 %: 90.0 % ± 2.0.",
        ),
        (Fit("t", [[0]], [[0]], [[0], [1]], [[0], [0]], [[1], [1]], [[0], [1]]), "1 before adaptation and 0.5 after 1"),
    ],
)  # fmt: skip
def test_pictures_have_texts_with_numbers(picture, words):
    assert words in picture_text(picture)
