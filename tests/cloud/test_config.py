"""The settings of a served model: written once, offered by the command and by Ray with the same ranges and defaults."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sideplug.cli.serve import click_option, config_of, serve
from sideplug.cloud.config import COMMAND, RAY, ServeConfig, settings
from sideplug.contract.errors import InputError


def config_from(*arguments: str, env: dict[str, str] | None = None) -> ServeConfig:
    """What `sideplug serve` makes of its arguments."""
    made: list[ServeConfig] = []
    command = click.Command(
        "serve",
        callback=lambda as_json, **values: made.append(config_of(**values)),
        params=[*serve.params],
    )
    result = CliRunner().invoke(command, arguments, env=env, standalone_mode=False)
    if result.exception:
        raise result.exception
    return made[0]


def test_every_setting_is_offered_and_explained() -> None:
    fields = {field.name for field in dataclasses.fields(ServeConfig)}
    assert {about.name for about in settings()} == fields
    assert {about.name for about in settings(COMMAND)} | {about.name for about in settings(RAY)} == fields
    assert {about.name for about in settings(COMMAND)} == {str(p.name) for p in serve.params} - {"as_json"}
    for about in settings():
        assert about.help.endswith("."), about.name
        about.check(about.default)


def test_without_options_the_command_has_the_defaults() -> None:
    assert config_from() == ServeConfig()


def test_options_variables_and_rays_words_make_the_same() -> None:
    given: dict[str, Any] = {
        "model": "x", "engine": "torch", "bits": "16", "threads": 2, "kv_memory": 0.5, "keys": "k.json",
        "insecure": True, "max_sessions": 3, "queue": 0, "keep_seconds": 1.5, "shared_prefix": "p.txt",
        "step_tokens": 3, "drain_seconds": 2.0, "log_level": "info", "max_replicas": 4, "target_sessions": 1.5,
        "allow_origin": "https://a.example",
    }  # fmt: skip
    want = ServeConfig(**given)
    both = {about.name for about in settings(COMMAND)} & {about.name for about in settings(RAY)}
    assert set(given) == both, "each that both offer is here"
    assert ServeConfig.parse({name: str(value) for name, value in given.items()}) == want
    assert ServeConfig.parse(want.ray_arguments()) == want
    options = [
        f"--{name.replace('_', '-')}={value}" for name, value in given.items() if name not in ("model", "insecure")
    ]
    assert config_from("x", "--insecure", *options) == want
    env = {f"SIDEPLUG_{name.upper()}": str(value) for name, value in given.items() if name not in ("model", "keys")}
    assert config_from("x", "--keys", "k.json", env=env) == want


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("step_tokens", 2),
        ("max_sessions", 0),
        ("target_sessions", 0.0),
        ("threads", -1),
        ("bits", "5"),
    ],
)
def test_both_refuse_the_same(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} must be"):
        ServeConfig(**{name: value})
    with pytest.raises(click.BadParameter):
        config_from(f"--{name.replace('_', '-')}={value}")


def test_an_option_is_made_from_the_field() -> None:
    about = next(about for about in settings() if about.name == "port")
    command = click.command()(click_option(about)(lambda: None))
    (option,) = command.params
    assert isinstance(option, click.Option)
    assert (option.opts, option.default, option.envvar, option.help) == (["--port"], 8765, "SIDEPLUG_PORT", about.help)
    assert (option.type.min, option.type.max) == (0, 65535)  # type: ignore[attr-defined]
