"""``cluster/``: Ray's own check, a stricter one for what it lets pass, and a planted typo for each."""

import copy
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:ray.*")

ROOT = Path(__file__).parents[1]
ONPREM = ROOT / "cluster" / "onprem.yaml"

# All that Ray 2.60 reads from the section `provider` for machines given by address. Its own schema lets any key pass.
PROVIDER_KEYS = {"type", "head_ip", "worker_ips", "external_head_ip", "use_internal_ips", "use_external_head_ip"}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def config():
    return yaml.safe_load(ONPREM.read_text())


def ray_problems(config):
    """What `ray up` itself says about a configuration, before it reaches for any machine."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValidationError as error:
        return [error.message]
    # KeyError and NotImplementedError: how it takes a provider that is missing or unknown.
    except (click.ClickException, ValueError, KeyError, NotImplementedError) as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def own_problems(config):
    """What Ray lets pass: keys of the provider, the shell of the commands, options of `ray start`, addresses."""
    provider = config.get("provider", {})
    found = [f"provider: unknown key {key!r}" for key in sorted(set(provider) - PROVIDER_KEYS)]
    found += [f"provider: no {key!r}" for key in ("type", "head_ip", "worker_ips") if key not in provider]
    for kind in COMMANDS:
        for command in config.get(f"{kind}_commands", []):
            found += shell_problems(command)
            try:
                options = ray_start_options(command)
            except click.UsageError as error:
                found.append(f"{kind}_commands: {error.message}")
                continue
            if options and options["head"] and options["node_ip_address"] != provider.get("head_ip"):
                found.append(f"--node-ip-address is {options['node_ip_address']}, head_ip {provider.get('head_ip')}")
    return found


def ray_start_options(command):
    """The options of the `ray start` in a shell command as Ray's own parser reads them; None where there is none."""
    from ray.scripts.scripts import start

    match = re.search(r"\bray start\b(.*)", command, re.DOTALL)
    if match is None:
        return None
    return start.make_context("start", shlex.split(match.group(1))).params


def shell_problems(script):
    # Beside the interpreter first: pytest may run from an environment that is not on PATH.
    shellcheck = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or "shellcheck"
    # SC2088: a quoted ~ is meant for the shell of another machine.
    done = subprocess.run(
        [shellcheck, "--shell=bash", "--severity=warning", "--exclude=SC2088", "--format=gcc", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()


def all_keys(node, path=()):
    """The path of every key in a tree of mappings and lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from all_keys(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from all_keys(value, (*path, index))


def misspelt(tree, path):
    """A copy of the tree in which the key at ``path`` has its last two letters swapped, and the new key."""
    tree = copy.deepcopy(tree)
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    old = path[-1]
    new = old[:-2] + old[-1] + old[-2] if old[-1] != old[-2] else old + "x"
    parent[new] = parent.pop(old)
    return tree, new


def test_ray_accepts_the_onprem_cluster(config):
    assert ray_problems(config) == []
    assert own_problems(config) == []


def test_every_misspelt_key_of_the_onprem_cluster_is_caught(config):
    # Left out: what is under file_mounts is paths, not keys.
    paths = [path for path in all_keys(config) if path[0] != "file_mounts" or len(path) == 1]
    assert len(paths) > 10
    for path in paths:
        planted, key = misspelt(config, path)
        problems = ray_problems(planted) + own_problems(planted)
        assert any(repr(key) in line or repr(path[-1]) in line for line in problems), (path, problems)


def test_ray_alone_would_miss_a_misspelt_provider_key(config):
    """Why `own_problems` exists; when this fails, Ray has become stricter and part of it can go."""
    config["provider"]["use_internal_ip"] = True
    assert ray_problems(config) == []
    assert own_problems(config) == ["provider: unknown key 'use_internal_ip'"]


def test_a_planted_typo_in_an_option_of_ray_start_is_caught(tmp_path, config):
    text = ONPREM.read_text()
    assert "--dashboard-host" in text
    planted = tmp_path / "onprem.yaml"
    planted.write_text(text.replace("--dashboard-host", "--dashbord-host"))
    problems = own_problems(yaml.safe_load(planted.read_text()))
    assert any("--dashbord-host" in line for line in problems), problems


def test_a_planted_shell_error_is_caught(config):
    config["setup_commands"].append("if test -e ~/x; then echo")
    assert any("SC1" in line for line in own_problems(config))


def test_a_head_address_edited_in_one_place_only_is_caught(config):
    config["provider"]["head_ip"] = "192.0.2.99"
    assert own_problems(config) == ["--node-ip-address is 192.0.2.10, head_ip 192.0.2.99"]


def test_the_onprem_cluster_is_closed_and_reports_nothing_home(config):
    (head,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    (worker,) = (c for c in config["worker_start_ray_commands"] if "ray start" in c)
    options = ray_start_options(head)
    assert options["dashboard_host"] == "127.0.0.1"
    assert options["disable_usage_stats"]
    # Ray itself exports the other value in front of both.
    assert "RAY_USAGE_STATS_ENABLED=0" in head
    assert "RAY_enable_autoscaler_v2=0" in head
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert "ulimit -n" in command
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_head_and_workers_meet_at_the_same_port(config):
    (head,) = filter(None, map(ray_start_options, config["head_start_ray_commands"]))
    (worker,) = filter(None, map(ray_start_options, config["worker_start_ray_commands"]))
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"


def test_the_addresses_are_placeholders_from_the_documentation_range(config):
    addresses = re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", ONPREM.read_text())
    assert all(address.startswith("192.0.2.") or address == "127.0.0.1" for address in addresses)
    assert config["provider"]["head_ip"] not in config["provider"]["worker_ips"]


def test_the_nodes_get_a_ray_that_the_project_allows(config):
    (pinned,) = re.findall(r"ray\[default\]==([\d.]+)", "\n".join(config["setup_commands"]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert pinned in wanted.specifier


def test_the_commands_of_the_readme_are_shell_that_ray_understands():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "cluster" / "README.md").read_text(), re.DOTALL)
    assert blocks
    starts = 0
    for block in blocks:
        assert shell_problems(block) == []
        for line in block.replace("\\\n", " ").splitlines():
            command = re.split(r"\s(?:>|2>|&)", line)[0]
            starts += ray_start_options(command) is not None
    assert starts == 2
