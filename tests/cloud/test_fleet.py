"""What a replica is told, and what the command says that it can't be; Ray itself is in tests/slow/test_ray.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sideplug.cli.serve import fleet_config
from sideplug.cloud.config import DEFAULT_MODEL, SPARE_REQUESTS, ServeConfig
from sideplug.cloud.cores import cores
from sideplug.cloud.engines import EngineOptions
from sideplug.cloud.fleet import replica, share_machine
from sideplug.cloud.keys import Keys
from sideplug.cloud.start import Parts
from sideplug.contract.errors import InputError
from tests.conftest import Run
from tests.test_cli import sentence

ROOT = Path(__file__).parent.parent.parent
NO_RAY = importlib.util.find_spec("ray") is None


def test_words_become_what_they_stand_for() -> None:
    told = {"model": "x", "bits": "8", "threads": "2", "kv_memory": "0.5", "insecure": "true", "max_replicas": "4"}
    settings = ServeConfig.parse(told)
    assert (settings.model, settings.threads, settings.kv_memory, settings.insecure) == ("x", 2, 0.5, True)
    assert Parts.of(settings).options == EngineOptions("auto", "8", "cpu", 2, 1 << 29)
    assert (settings.min_replicas, settings.most_replicas) == (1, 4)
    assert settings.ongoing_requests == settings.max_sessions + SPARE_REQUESTS
    assert ServeConfig.parse({"bits": 16, "insecure": True, "min_replicas": 2}).most_replicas == 2
    assert ServeConfig.parse({"insecure": "no", "keys": "k", "kv_memory": 1}).kv_memory == 1.0
    assert ServeConfig.parse({"insecure": True, "max_ongoing_requests": 7}).ongoing_requests == 7


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"modell": "x"}, "there is no argument 'modell'; there are: model, engine, bits"),
        ({"threads": "two"}, "threads must be a whole number, got 'two'"),
        ({"threads": 1.5}, "threads must be a whole number, got 1.5"),
        ({"threads": True}, "threads must be a whole number, got True"),
        ({"threads": -1}, "threads must be 0 or more, got -1"),
        ({"kv_memory": "nan"}, "kv_memory must be 0 or more, got nan"),
        ({"kv_memory": None}, "kv_memory must be a number, got None"),
        ({"insecure": "perhaps"}, "insecure must be true or false, got 'perhaps'"),
        ({"model": ["x"]}, "model must be text, got ['x']"),
        ({"bits": 5}, "bits must be one of auto, 4, 8, 16, got '5'"),
        ({"engine": "x"}, "engine must be one of"),
        ({"max_sessions": 0}, "max_sessions must be 1 or more, got 0"),
        ({"min_replicas": 0}, "min_replicas must be 1 or more, got 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas must be min_replicas (3) or more, got 2"),
        ({"target_sessions": 0}, "target_sessions must be above 0, got 0.0"),
        ({"insecure": False}, "a fleet asks for keys: give keys"),
    ],
    ids=str,
)
def test_what_can_not_be_is_said(told: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        ServeConfig.parse({"insecure": True, **told})
    assert str(error.value).startswith(says)


def test_the_config_of_the_docs_is_one() -> None:
    """And its middleware is where it says."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "docs" / "FLEET.md").read_text()
    block = text[text.index("    # fleet.yaml") :].split("\n\n")[0]
    config = yaml.safe_load("\n".join(line[4:] for line in block.splitlines()))
    (application,) = config["applications"]
    settings = ServeConfig.parse(application["args"])
    assert (settings.min_replicas, settings.max_replicas, settings.keys) == (2, 8, "/shared/keys.json")
    (path,) = config["controller_options"]["runtime_env"]["env_vars"].values()
    assert path == "sideplug.cloud.flow_control.middlewares"
    assert text.count(path) == 2


def test_those_on_one_machine_share_it() -> None:
    shared = share_machine(ServeConfig(insecure=True, min_replicas=2))
    assert shared.threads == max(1, cores()[0] // 2)
    assert 0 < shared.kv_memory < 1 << 20
    asked = ServeConfig(insecure=True, min_replicas=2, threads=3, kv_memory=1.0)
    assert share_machine(asked) == asked


def test_what_the_command_tells_its_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full paths, keys that were found, a number of replicas; on a cluster no part of this machine."""
    monkeypatch.chdir(tmp_path)
    Keys(tmp_path / "k.json").add("ada")
    config = fleet_config(ServeConfig(ray=True, replicas=2, threads=1, port=0), Keys(Path("k.json")))
    assert (config.min_replicas, config.most_replicas, config.threads) == (2, 2, 1)
    assert (config.keys, config.insecure, config.model) == (str(tmp_path / "k.json"), False, DEFAULT_MODEL)
    assert config.kv_memory > 0
    assert ServeConfig.parse(config.ray_arguments()).keys == config.keys
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    far = fleet_config(ServeConfig(ray=True, max_replicas=8), None)
    assert (far.min_replicas, far.most_replicas, far.insecure) == (1, 8, True)
    assert (far.threads, far.kv_memory) == (0, 0.0)


def test_what_a_replica_does_not_find_is_said(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no keys file .*missing on this machine"):
        replica(ServeConfig(model=str(tiny), keys=str(tmp_path / "missing")))
    with pytest.raises(InputError, match="prefix can't be read"):
        replica(ServeConfig(model=str(tiny), insecure=True, shared_prefix=str(tmp_path / "prefix")))


def test_a_shared_prefix_is_run_once(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prefix").write_text("You are a miller, and know the river, the bees and the roads.")
    prefix = str(tmp_path / "prefix")
    service = replica(ServeConfig(model=str(tiny), bits="16", threads=1, insecure=True, shared_prefix=prefix))
    assert len(service.thread.engine.prefix_cache) == 1
    service.thread.stop()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replicas", 2], "--replicas and --max-replicas are of a fleet: give --ray too"),
        (["--ray", "--replicas", 2, "--max-replicas", 3], "can't be given together"),
        (["--ray", "--device", "cuda"], "--ray runs on CPUs: leave out --device cuda"),
        (["--ray", "--log-json"], "--log-json can't be given with --ray"),
        (["--ray", "--keys", "missing"], "there is no keys file missing"),
        (["--ray", "--host", "0.0.0.0"], "is beyond this machine: it needs TLS"),
        (["--ray", "--replicas", "x"], "not a valid integer"),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else "",
)
def test_bad_input(run: Run, arguments: list[Any], says: str) -> None:
    if NO_RAY and "--ray" in arguments:
        says = "--ray needs the package ray: pip install 'sideplug[ray]'" if "x" not in arguments else says
    sentence(run("serve", *arguments), 2, says)


def test_without_ray_it_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    """A machine without it: a finder in front hides it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfound = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'ray' else found(name, *more)\n"
    )
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    sentence(run("serve", "--ray", env=path), 2, "--ray needs the package ray: pip install 'sideplug[ray]'")
