"""An audit finds what makes a task depend on more than its ref, names the line, and passes what does not."""

import json
from pathlib import Path

import pytest

import distmeta
from broken_tasks import DRAWN, HEAD, TAIL, line, write
from distmeta.auditing import Interpreters, audit
from distmeta.errors import TaskContractError
from distmeta.experiment.job import jobs_folder, load_job


@pytest.fixture(scope="module")
def interpreters():
    with Interpreters() as both:
        yield both


@pytest.fixture
def audited(interpreters, tmp_path):
    """Audit a job of this code, or an existing job file."""

    def run(code, **overrides):
        path = code if isinstance(code, Path) else write(tmp_path, "some_job", code)[0]
        return audit(load_job(path, overrides), tasks=4, interpreters=interpreters)

    return run


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_wrong_is_found_and_its_line_is_named(name, interpreters, tmp_path):
    title, reads, code = DRAWN[name]
    path, number = write(tmp_path, f"broken_{name}", code)
    done = audit(load_job(path), tasks=6, interpreters=interpreters)
    (finding,) = done.findings
    assert finding.proof == title
    assert (finding.line.file, finding.line.number) == (str(path), number)
    assert finding.line.source.endswith("# HERE")
    assert any(reads in read for read in finding.line.reads or ("",))
    assert finding.fix
    assert not next(proof for proof in done.proofs if proof.title == title).holds
    with pytest.raises(TaskContractError, match="no pure functions of their refs"):
        done.require()


GLYPHS = "tasks = distmeta.FewShot(data='glyphs', ways=3, shots=2)\n"
NGRAMS = "tasks = distmeta.NGramsTask()\n"


@pytest.mark.parametrize("code", [GLYPHS, NGRAMS, "tasks = Sinusoids()\n"])
def test_distributions_of_the_package_are_clean(code, audited, glyphs_dir):
    done = audited("import distmeta\n" + code)
    assert done.findings == ()
    assert done.remarks == ()
    assert all(proof.holds for proof in done.proofs)
    done.require()


@pytest.mark.chaos
@pytest.mark.parametrize("path", sorted(jobs_folder().glob("*.py")), ids=lambda path: path.stem)
def test_every_job_is_clean(path, interpreters, glyphs_dir):
    job = load_job(path)
    if "data" in type(job.experiment.tasks.config).model_fields:
        job = job.with_overrides({"tasks.data": "glyphs"})  # Omniglot and pictures are not here; the tasks are the same
    assert audit(job, interpreters=interpreters).findings == ()


def test_a_cause_is_named_once_and_what_follows_from_it_is_marked(audited):
    done = audited(DRAWN["global"][2])
    assert len(done.findings) == 1
    assert {proof.title for proof in done.proofs if proof.follows is not None} == {
        "same ref, same bytes",
        "worker count, order of draws",
        "sent to a worker",
    } & {proof.title for proof in done.proofs if not proof.holds}
    same = next(proof for proof in done.proofs if proof.title == "same ref, same bytes")
    assert not same.holds  # in reality it differs the second time, too
    assert same.follows == done.findings[0].line


def test_a_global_generator_that_is_seeded_from_the_ref_is_a_remark(audited):
    done = audited(line("np.random.seed(random.integers(2**32)); shift = np.random.normal()"))
    assert done.findings == ()
    (remark,) = done.remarks
    assert remark.startswith("reads numpy's global generator, and the bytes do not depend on it")
    assert "# HERE" in remark


def test_two_causes_are_two_findings(audited):
    both = DRAWN["set"][2].replace("# HERE", "").replace("slope =", "slope = time.time() % 7 +")
    assert {finding.proof for finding in audited(both).findings} == {"time", "hash seed"}


CONSTANT = """
@task_distribution
def tasks(random, split):
    x = np.linspace(0, 1, 8)[:, None]
    return x[:4], 3.5 * x[:4], x[4:], 3.5 * x[4:]
"""
OF_THE_INDEX = """
class Indexed(Sinusoids):
    def draw_ref(self, ref, seed):
        return self.draw(ref.split, np.random.default_rng(ref.index))

    def draw(self, split, random):
        return super().draw(split, random)

    {count}

tasks = Indexed()
"""


def test_refs_that_agree_are_found(audited):
    (finding,) = audited(CONSTANT).findings
    assert finding.proof == "no two refs agree"
    for what in ("differ in index", "differ in step", "differ in split", "under another seed"):
        assert what in finding.what
    assert finding.line.source == "@task_distribution"
    (finding,) = audited(OF_THE_INDEX.format(count="")).findings  # the step, the split and the seed are ignored
    assert "differ in index" not in finding.what
    assert "differ in step" in finding.what
    assert "20 of 20 tasks under another seed" in finding.what


def test_a_limited_list_of_tasks_may_repeat_itself(audited):
    done = audited(OF_THE_INDEX.format(count="def count(self, split): return 3"))
    assert done.findings == ()
    assert next(p for p in done.proofs if p.title == "no two refs agree").evidence.startswith("not compared")


BITS = """
@task_distribution
def tasks(random, split):
    x = random.integers(2, size=(6, 2)).astype(float)
    return x[:2], x[:2], x[2:], x[2:]
"""


def test_rows_and_tasks_of_few_whole_numbers_agree_by_chance(audited):
    done = audited(BITS)
    assert done.findings == ()
    assert any("are taken for chance" in remark for remark in done.remarks)


OTHER_FOLDER = """
class Reads(Sinusoids):
    def draw(self, split, random):
        scale = float(open("scale.txt").read())  # HERE
        return super().draw(split, random).map(lambda part: part * scale)

tasks = Reads()
"""


def test_a_file_beside_the_current_folder_is_not_beside_a_workers(audited, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scale.txt").write_text("2.5")
    path, number = write(tmp_path, "reads", OTHER_FOLDER)
    (finding,) = audit(load_job(path), tasks=3).findings  # of its own interpreters: they start in this folder
    assert (finding.proof, finding.line.number) == ("sent to a worker", number)
    assert "No such file" in finding.what


def test_a_variable_that_was_not_changed_is_a_remark(interpreters, tmp_path, monkeypatch, audited):
    monkeypatch.setitem(interpreters.environment, "PLACE", "somewhere")  # what the interpreters were started with
    done = audited(line("shift = len(os.environ.get('PLACE', 'somewhere'))"))
    assert done.findings == ()
    assert "reads os.environ['PLACE'], which was not changed" in done.remarks[0]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ("os.environ['RANK']", r"cannot be drawn: KeyError: 'RANK'.*some_job.py:[0-9]+: os.environ"),
        ("os._exit(3)", "cannot be drawn: the process died with 3"),
    ],
)
def test_tasks_that_cannot_be_drawn_at_all_are_an_error(draw, message, audited):
    with pytest.raises(TaskContractError, match=message):
        audited(f"class Fails(Sinusoids):\n    def draw(self, split, random):\n        {draw}\ntasks = Fails()\n")


def test_an_error_under_one_change_is_a_finding(audited):
    (finding,) = audited(line("shift = 1 / (5 - int(os.environ.get('WORLD_SIZE', 1)))")).findings
    assert finding.proof == "rank, worker, machine"
    assert "ZeroDivisionError" in finding.what
    assert finding.line.source.endswith("# HERE")


def test_what_cannot_be_sent_is_named(audited):
    with pytest.raises(TaskContractError, match="Sinusoids cannot be sent to a worker"):
        audited("import threading\ntasks = Sinusoids()\ntasks.lock = threading.Lock()\n")


def test_facts_are_json(audited):
    facts = json.loads(json.dumps(audited(DRAWN["set"][2]).to_dict()))
    assert facts["ok"] is False
    (finding,) = facts["findings"]
    assert finding["proof"] == "hash seed"
    assert finding["source"] == "ORDER = list({*WORDS})  # HERE"
    assert finding["used_at"].endswith(f":{finding['line'] + 5}")
    assert [proof["title"] for proof in facts["proofs"] if not proof["holds"]] == ["hash seed"]


def test_the_heads_of_these_jobs_run():
    namespace: dict = {}
    exec(HEAD + "tasks = Sinusoids()\n" + TAIL, namespace)
    assert isinstance(namespace["experiment"], distmeta.Experiment)
