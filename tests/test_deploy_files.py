"""``deploy/``, CI and the command lines in them: each file against its schema, and a planted typo for each check."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "docker" / "compose.yaml"
RAYJOB = ROOT / "deploy" / "k8s" / "rayjob.yaml"
STORAGE = ROOT / "deploy" / "k8s" / "storage.yaml"
KUSTOMIZATION = ROOT / "deploy" / "k8s" / "kustomization.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
DEPENDABOT = ROOT / ".github" / "dependabot.yml"
PRE_COMMIT = ROOT / ".pre-commit-config.yaml"
CI_RUN = ROOT / ".ci" / "run"
GPU_CHECK = ROOT / ".github" / "gpu-check.sh"
CHECK_WHEEL = ROOT / ".ci" / "check-wheel"
READMES = [ROOT / "deploy" / "README.md", ROOT / "cluster" / "README.md"]
ALL_YAML = [
    *sorted((ROOT / "deploy").rglob("*.yaml")),
    *sorted((ROOT / "cluster").rglob("*.yaml")),
    WORKFLOW,
    RELEASE,
    DEPENDABOT,
    PRE_COMMIT,
]

KUBERNETES = "1.33"
DRAIN_S = 30  # Ray's RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S


# -- helpers --------------------------------------------------------------------------------------------------------


def run(name, *arguments, **options):
    """Run a tool of the `dev` extra; its exit code and all that it printed."""
    # Beside the interpreter first: pytest may run from an environment that is not on PATH.
    tool = shutil.which(name, path=sysconfig.get_path("scripts")) or name
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout + done.stderr


def plant(tmp_path, path, old, new):
    """A copy of a file with one place changed."""
    text = path.read_text()
    assert text.count(old) >= 1, f"{path} has no {old!r}: the test plants its typo there"
    planted = tmp_path / path.name
    planted.write_text(text.replace(old, new, 1))
    return planted


def load(path):
    return yaml.safe_load(path.read_text())


@cache
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def allowed(package):
    """The version range of a package in pyproject.toml."""
    (found,) = (r for r in map(Requirement, project()["dependencies"]) if r.name == package)
    return found.specifier


def all_keys(node, path=()):
    """The path of every key in a tree of mappings and lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from all_keys(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from all_keys(value, (*path, index))


# -- Dockerfile -----------------------------------------------------------------------------------------------------


def docker_arguments():
    return dict(re.findall(r"^ARG (\w+)=\"?([^\s\"]*)", DOCKERFILE.read_text(), re.MULTILINE))


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    code, said = run("hadolint", DOCKERFILE)
    assert (code, said) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("WORKDIR /app", "WORKDIRR /app", None),  # it cannot parse this one, and names the line only
        ("tini=0.19.0-*", "tini", "DL3008"),
        ("AS distmeta", "AS base", "DL3024"),
        ('ENTRYPOINT ["/usr/bin/tini", "--", "distmeta"]', "ENTRYPOINT distmeta", "DL3025"),
    ],
)
def test_hadolint_catches_a_planted_typo_in_the_dockerfile(tmp_path, old, new, named):
    planted = plant(tmp_path, DOCKERFILE, old, new)
    line = planted.read_text().partition(new)[0].count("\n") + 1
    code, said = run("hadolint", "--no-color", planted)
    assert code != 0
    assert (named or f"Dockerfile:{line}:") in said


def test_both_images_run_without_rights_under_tini():
    text = DOCKERFILE.read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert [stage.split("AS ")[1].split()[0] for stage in stages] == ["base", "mlflow", "distmeta"]
    for stage in stages[1:]:
        # A number, not a name: Kubernetes' runAsNonRoot can check only a number.
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["10001:10001"]
        assert 'ENTRYPOINT ["/usr/bin/tini", "--"' in stage
        assert "HEALTHCHECK" in stage
    assert "RAY_USAGE_STATS_ENABLED=0" in stages[0]
    assert "MLFLOW_DISABLE_TELEMETRY=true" in stages[0]


def test_the_image_tracks_into_a_folder_that_its_user_owns():
    text = DOCKERFILE.read_text()
    (path,) = re.findall(r"^ENV MLFLOW_TRACKING_URI=sqlite:///(/.*)$", text, re.MULTILINE)
    (owned,) = re.findall(r"install --directory --owner=10001 --group=10001 (.*)$", text, re.MULTILINE)
    assert str(Path(path).parent) in owned.split()


def test_the_images_get_versions_that_the_project_allows():
    arguments = docker_arguments()
    assert arguments["TORCH_VERSION"] in allowed("torch")
    assert arguments["RAY_VERSION"] in allowed("ray")
    assert arguments["MLFLOW_VERSION"] in allowed("mlflow")
    # One per stage that installs it: an older client than server, or the other way round, is asking for trouble.
    assert len(set(re.findall(r"ARG MLFLOW_VERSION=(\S+)", DOCKERFILE.read_text()))) == 1
    python = f"Programming Language :: Python :: {arguments['PYTHON_VERSION']}"
    assert python in project()["classifiers"]


def test_what_the_dockerfile_copies_exists_and_nothing_else_is_sent_to_the_builder():
    copied = {
        source
        for line in re.findall(r"^COPY (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    ignored = (DOCKERFILE.with_name("Dockerfile.dockerignore")).read_text().split("\n")
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


# -- compose --------------------------------------------------------------------------------------------------------


def test_the_compose_file_fits_the_compose_schema():
    code, said = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    assert code == 0, said


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("    healthcheck:", "    healtcheck:", "healtcheck"),
        ("shm_size:", "shm_sise:", "shm_sise"),
        ("condition: service_healthy", "condtion: service_healthy", "condtion"),
        ("environment: MLFLOW_DB_PASSWORD", "enviroment: MLFLOW_DB_PASSWORD", "enviroment"),
    ],
)
def test_the_compose_schema_catches_a_planted_typo(tmp_path, old, new, named):
    planted = plant(tmp_path, COMPOSE, old, new)
    code, said = run("check-jsonschema", "--verbose", "--builtin-schema", "vendor.compose-spec", planted)
    assert code != 0
    assert named in said


def test_compose_has_no_password_and_listens_on_this_machine_only():
    compose = load(COMPOSE)
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for key, value in service.get("environment", {}).items():
            assert "PASSWORD" not in key or key.endswith("_FILE"), (name, key, value)
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service["image"].endswith(":latest"), name
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"], name
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"], name
    assert not re.search(r"\$\{MLFLOW_DB_PASSWORD:?-", COMPOSE.read_text())
    assert ".env" in COMPOSE.with_name(".gitignore").read_text().split()


def test_compose_builds_targets_that_the_dockerfile_has():
    stages = re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    for service in load(COMPOSE)["services"].values():
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
            assert ROOT / service["build"]["dockerfile"] == DOCKERFILE
            assert service["build"]["target"] in stages
            assert set(service["build"]["args"]) <= set(docker_arguments())


def test_the_train_service_finds_mlflow_under_a_name_that_mlflow_answers_to():
    services = load(COMPOSE)["services"]
    (uri,) = (a.split("=", 1)[1] for a in services["train"]["command"] if a.startswith("--tracking-uri="))
    (script,) = services["mlflow"]["command"]
    words = shlex.split(script.replace("$$", "$"))
    hosts = words[words.index("--allowed-hosts") + 1].split(",")
    assert uri.removeprefix("http://") in hosts


def test_the_mlflow_command_has_options_that_mlflow_knows():
    code, known = run("mlflow", "server", "--help", env=os.environ | {"COLUMNS": "200"})
    assert code == 0
    (script,) = load(COMPOSE)["services"]["mlflow"]["command"]
    options = re.findall(r"(?<=\s)--[a-z-]+", script)
    assert options
    for option in options:
        assert re.search(rf"{option}\b", known), option


# -- Kubernetes -----------------------------------------------------------------------------------------------------


@cache
def rayjob_validator():
    """deploy/k8s/rayjob.schema.json, with Kubernetes' own definitions from the package kubernetes-validate."""
    import kubernetes_validate
    from referencing import Registry, Resource

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    schema = json.loads(RAYJOB.with_name("rayjob.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema, registry=definitions @ Registry())


def rayjob_problems(rayjob):
    found = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in rayjob_validator().iter_errors(rayjob)]
    for name, parameters in ray_start_parameters(rayjob):
        found += [f"{name}: `ray start` has no option {key!r}" for key in parameters if key not in known_to_ray_start()]
    return found


def ray_start_parameters(rayjob):
    cluster = rayjob.get("spec", {}).get("rayClusterSpec", {})
    groups = [("head", cluster.get("headGroupSpec", {}))]
    groups += [(group.get("groupName"), group) for group in cluster.get("workerGroupSpecs", [])]
    for name, group in groups:
        yield name, group.get("rayStartParams", {})


@cache
def known_to_ray_start():
    from ray.scripts.scripts import start

    return {option.removeprefix("--") for parameter in start.params for option in parameter.opts}


def pods(rayjob):
    """Name and pod template of all that the RayJob starts."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    yield "submitter", rayjob["spec"]["submitterPodTemplate"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def test_the_rayjob_fits_kuberays_schema():
    assert rayjob_problems(load(RAYJOB)) == []


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(rayjob_validator().schema)


def test_every_misspelt_key_of_the_rayjob_is_caught():
    # Left out: names of quantities are free for Kubernetes; test_requests_are_limits looks at those.
    rayjob = json.loads(json.dumps(load(RAYJOB)))  # a tree: nothing shared through the anchors of the YAML
    paths = [p for p in all_keys(rayjob) if not {"requests", "limits"} & set(p[:-1])]
    assert len(paths) > 80
    missed = []
    for path in paths:
        planted = parent = copy.deepcopy(rayjob)
        for step in path[:-1]:
            parent = parent[step]
        key = path[-1] + "x"
        parent[key] = parent.pop(path[-1])
        if not any(repr(key) in line for line in rayjob_problems(planted)):
            missed.append(path)
    assert missed == []


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("maxReplicas: 8", 'maxReplicas: "8"', "maxReplicas"),
        ("mode: token", "mode: tokn", "authOptions.mode"),
        ('num-cpus: "0"', "num-cpus: 0", "num-cpus"),
        ("containerPort: 6379", "containerPrt: 6379", "containerPrt"),
        ("runAsNonRoot: true", 'runAsNonRoot: "yes"', "runAsNonRoot"),
    ],
)
def test_the_rayjob_schema_names_a_planted_typo(tmp_path, old, new, named):
    problems = rayjob_problems(load(plant(tmp_path, RAYJOB, old, new)))
    assert any(named in line for line in problems), problems


def kubernetes_problems(path):
    code, said = run("kubernetes-validate", "--strict", "--quiet", "-k", KUBERNETES, path)
    return said.splitlines() or ([f"exit code {code}"] if code else [])


def test_plain_kubernetes_objects_fit_kubernetes_schema():
    assert kubernetes_problems(STORAGE) == []


@pytest.mark.parametrize(("old", "new"), [("accessModes", "accessMode"), ("resources", "resorces")])
def test_kubernetes_schema_catches_a_planted_typo(tmp_path, old, new):
    problems = kubernetes_problems(plant(tmp_path, STORAGE, f"  {old}:", f"  {new}:"))
    assert any(repr(new) in line for line in problems), problems


def test_no_pod_runs_with_rights():
    for name, template in pods(load(RAYJOB)):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert f"{pod['securityContext']['runAsUser']}:" in DOCKERFILE.read_text(), name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name


def test_requests_are_limits():
    for name, template in pods(load(RAYJOB)):
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            assert resources["requests"] == resources["limits"], name
            assert set(resources["limits"]) <= {"cpu", "memory", "nvidia.com/gpu"}, name


def test_ray_may_drain_a_node_before_kubernetes_kills_it():
    for name, template in pods(load(RAYJOB)):
        if name != "submitter":
            assert template["spec"]["terminationGracePeriodSeconds"] > DRAIN_S, name


def test_the_workers_asked_for_fit_on_the_workers_pods():
    spec = load(RAYJOB)["spec"]
    (asked,) = re.findall(r"--workers[ =](\d+)", spec["entrypoint"])
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert int(asked) <= group["replicas"] * cpus


def test_runs_and_cache_are_on_the_volume():
    claim = load(STORAGE)["metadata"]["name"]
    for name, template in pods(load(RAYJOB)):
        if name == "submitter":
            continue
        pod = template["spec"]
        assert [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]] == [claim], name
        (mount,) = pod["containers"][0]["volumeMounts"]
        paths = [e["value"] for e in pod["containers"][0]["env"] if e["name"] == "DISTMETA_CACHE"]
        assert paths[0].startswith(mount["mountPath"] + "/"), name
        assert f"--run-dir {mount['mountPath']}/" in load(RAYJOB)["spec"]["entrypoint"]


def test_one_ray_everywhere():
    version = load(RAYJOB)["spec"]["rayClusterSpec"]["rayVersion"]
    assert version in allowed("ray")
    assert version == docker_arguments()["RAY_VERSION"]
    assert f"ray[default]=={version}" in (ROOT / "cluster" / "onprem.yaml").read_text()


def kustomization_problems(path):
    """The few keys that are used here; the words are kustomize's."""
    known = {
        "": {"apiVersion", "kind", "resources", "images", "configMapGenerator", "generatorOptions"},
        "images": {"name", "newName", "newTag"},
        "configMapGenerator": {"name", "literals"},
        "generatorOptions": {"disableNameSuffixHash"},
    }
    tree = load(path)
    found = [f"unknown key {key!r}" for key in tree if key not in known[""]]
    for section, keys in known.items():
        content = tree.get(section, [])
        for entry in content if isinstance(content, list) else [content]:
            found += [f"{section}: unknown key {key!r}" for key in entry if key not in keys]
    found += [f"no file {name!r}" for name in tree.get("resources", []) if not (KUSTOMIZATION.parent / name).is_file()]
    return found


def test_kustomization_names_what_the_rayjob_has():
    assert kustomization_problems(KUSTOMIZATION) == []
    tree, used = load(KUSTOMIZATION), [c for _, t in pods(load(RAYJOB)) for c in t["spec"]["containers"]]
    assert {container["image"] for container in used} == {image["name"] for image in tree["images"]}
    wanted = {source["configMapRef"]["name"] for container in used for source in container.get("envFrom", [])}
    assert wanted == {generated["name"] for generated in tree["configMapGenerator"]}


@pytest.mark.parametrize(
    ("old", "new"), [("newTag", "newTga"), ("literals", "literal"), ("rayjob.yaml", "rayjobs.yaml")]
)
def test_a_planted_typo_in_the_kustomization_is_caught(tmp_path, old, new):
    problems = kustomization_problems(plant(tmp_path, KUSTOMIZATION, old, new))
    assert any(repr(new) in line for line in problems), problems


# -- CI -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-workflows", WORKFLOW), ("github-workflows", RELEASE), ("dependabot", DEPENDABOT)],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_github_reads_fits_its_schema(schema, path):
    code, said = run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", path)
    assert code == 0, said


@pytest.mark.parametrize(
    ("old", "new"), [("timeout-minutes", "timeout-minute"), ("runs-on", "run-on"), ("permissions", "permission")]
)
def test_githubs_schema_catches_a_planted_typo(tmp_path, old, new):
    planted = plant(tmp_path, WORKFLOW, f"{old}:", f"{new}:")
    code, said = run("check-jsonschema", "--verbose", "--builtin-schema", "vendor.github-workflows", planted)
    assert code != 0
    assert repr(new) in said


def test_the_workflow_runs_what_everybody_runs_on_every_python():
    workflow = load(WORKFLOW)
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    classifiers = [c.rpartition(" ")[2] for c in project()["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert job["strategy"]["matrix"]["python"] == classifiers


@pytest.mark.parametrize("path", [WORKFLOW, RELEASE], ids=lambda path: path.stem)
def test_workflows_may_only_read_and_pin_their_actions(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.search(r"@(release/)?v\d|@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)


def test_a_release_is_published_only_after_its_wheel_has_trained():
    workflow = load(RELEASE)
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert commands[-2:] == ["python -m build", ".ci/check-wheel dist/*.whl"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}  # trusted publishing, and nothing else
    assert not any("permissions" in job for name, job in workflow["jobs"].items() if name != "publish")


def test_ci_runs_the_tests_as_the_readme_says():
    assert os.access(CI_RUN, os.X_OK)
    steps = re.findall(r"^step (.*)$", CI_RUN.read_text(), re.MULTILINE)
    assert steps[:4] == ["ruff check", "ruff format --check", "mypy", ".ci/check-wheel"]
    assert steps[4].startswith("python .ci/api_reference.py ")
    assert steps[5:] == ["pytest --cov -n auto"]
    assert "pip install -e '.[dev]' && pytest" in (ROOT / "README.md").read_text()


def test_shellcheck_has_nothing_to_say_about_shell_files():
    assert os.access(CHECK_WHEEL, os.X_OK)
    assert os.access(GPU_CHECK, os.X_OK)
    assert run("shellcheck", CI_RUN, CHECK_WHEEL, GPU_CHECK) == (0, "")


def test_the_gpu_check_refuses_an_option_that_it_lacks():
    code, said = run("bash", GPU_CHECK, "--gpu")
    assert code == 2
    assert "--gpu: no such option; expected --out, --data, --peers or --cpu." in said


def test_shellcheck_catches_a_planted_typo(tmp_path):
    code, said = run("shellcheck", plant(tmp_path, CI_RUN, "$work/venv/bin", "$wrok/venv/bin"))
    assert code != 0
    assert "wrok" in said


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_shellcheck_has_nothing_to_say_about_the_commands_of_a_readme(readme):
    for block in blocks(readme):
        # SC2088: a quoted ~ is meant for the shell of another machine. SC2154: a variable that the reader sets.
        assert run("shellcheck", "--shell=bash", "--exclude=SC2088,SC2154", "-", input=block) == (0, "")


def yamllint(*paths):
    (hook,) = (h for h in load(PRE_COMMIT)["repos"][0]["hooks"] if h["id"] == "yamllint")
    words = [*shlex.split(hook["entry"]), *hook["args"]]
    return run(*words, *paths)


def test_yamllint_has_nothing_to_say_about_any_yaml_file():
    assert len(ALL_YAML) >= 6
    assert yamllint(*ALL_YAML) == (0, "")


def test_yamllint_catches_a_planted_typo(tmp_path):
    code, said = yamllint(plant(tmp_path, WORKFLOW, "timeout-minutes:", "runs-on:"))
    assert code != 0
    assert 'duplication of key "runs-on"' in said


def test_the_pre_commit_hooks_are_local_and_well_formed(tmp_path):
    code, said = run("pre-commit", "validate-config", PRE_COMMIT, env=os.environ | {"PRE_COMMIT_HOME": str(tmp_path)})
    assert (code, said) == (0, "")
    assert [repo["repo"] for repo in load(PRE_COMMIT)["repos"]] == ["local"]


def test_pre_commit_catches_a_planted_typo(tmp_path):
    planted = plant(tmp_path, PRE_COMMIT, "language:", "langauge:")
    code, said = run("pre-commit", "validate-config", planted, env=os.environ | {"PRE_COMMIT_HOME": str(tmp_path)})
    assert code != 0
    assert "language" in said


# -- command lines of distmeta --------------------------------------------------------------------------------------


def blocks(readme):
    found = re.findall(r"```bash\n(.*?)```", readme.read_text(), re.DOTALL)
    assert found
    return found


def command_lines(texts):
    """The words of every `distmeta SUBCOMMAND ...` in shell text."""
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            # "run --rm distmeta train": the word before may be docker's; a "#", ">" or "&" ends the command.
            match = re.search(r"(?:^|\s)distmeta ((?:train|resume|submit|evaluate|inspect|data)\b[^#>&`]*)", line)
            if match:
                yield shlex.split(match.group(1))


def documented_command_lines():
    """The command lines of distmeta in every file of `cluster/` and `deploy/`, as (file, words)."""
    found = {"rayjob.yaml": [load(RAYJOB)["spec"]["entrypoint"]]}
    for readme in READMES:
        prose = re.sub(r"```.*?```", "", readme.read_text(), flags=re.DOTALL)
        inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]*)`", prose)]
        found[f"{readme.parent.name}/README.md"] = [*blocks(readme), *inline]
    lines = [(file, words) for file, texts in found.items() for words in command_lines(texts)]
    return [*lines, ("compose.yaml", load(COMPOSE)["services"]["train"]["command"])]


def command_problems(words):
    """What `distmeta` would say about the words of a command line: unknown commands and options, missing job files."""
    import typer.main

    from distmeta.cli.main import app

    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        if name not in command.commands:
            return [f"no command {name!r}"]
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.partition("=")[0] for word in rest if word.startswith("-")]
    found = [f"no option {option!r}" for option in options if option not in known]
    return found + [f"no file {word!r}" for word in rest if word.endswith(".py") and not (ROOT / word).is_file()]


def test_the_command_lines_are_ones_that_distmeta_takes():
    lines = documented_command_lines()
    assert {file for file, _ in lines} == {"rayjob.yaml", "compose.yaml", "cluster/README.md", "deploy/README.md"}
    for file, words in lines:
        assert command_problems(words) == [], f"{file}: distmeta {shlex.join(words)}"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("train jobs/maml_glyphs.py --adress auto", "--adress"),
        ("trian jobs/maml_glyphs.py", "trian"),
        ("train jobs/maml_glyps.py", "jobs/maml_glyps.py"),
        ("data build glyphs --output DIR", "--output"),
    ],
)
def test_a_planted_typo_in_a_command_line_is_caught(line, named):
    assert any(repr(named) in problem for problem in command_problems(shlex.split(line)))
