"""Settings: flags over environment over defaults, and one sentence for whatever cannot be used."""

import dataclasses
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from relay.config import Config, ConfigError, example, load


def test_without_anything_set_every_default_holds() -> None:
    assert load({}) == Config()


def test_flags_win_over_the_environment_and_the_environment_over_defaults() -> None:
    config = load(
        {"RELAY_PORT": "1111", "RELAY_HOST": "::1", "RELAY_MAX_RETRIES": "7"},
        flags={"port": "2222"},
        defaults={"host": "0.0.0.0", "log_format": "text", "max_retries": "3"},
    )
    assert (config.port, config.host, config.max_retries, config.log_format) == (2222, "::1", 7, "text")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load({"RELAY_TOKEN": "", "RELAY_PORT": ""}) == Config()


def test_units_are_written_and_kept_in_milliseconds_and_bytes() -> None:
    config = load(
        {"RELAY_LEASE": "45s", "RELAY_LOG_RETENTION": "1d12h", "RELAY_MAX_MESSAGE_BYTES": "2MiB",
         "RELAY_MAX_BATCH_BYTES": "1000"}
    )  # fmt: skip
    assert config.lease_ms == 45_000
    assert config.log_retention_ms == 36 * 3_600_000
    assert config.limits().max_message_bytes == 2 << 20
    assert config.max_batch_bytes == 1000


def test_networks_are_a_comma_separated_list() -> None:
    config = load({"RELAY_ALLOW_NETWORKS": "10.0.0.0/8, fd00::/8,"})
    assert [str(network) for network in config.allow_networks] == ["10.0.0.0/8", "fd00::/8"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELAY_PORT", "65536"),
        ("RELAY_PORT", "-1"),
        ("RELAY_WORKERS", "0"),
        ("RELAY_WORKERS", "256"),
        ("RELAY_PORT", "http"),
        ("RELAY_LEASE", "1s"),
        ("RELAY_LEASE", "11m"),
        ("RELAY_LEASE", "soon"),
        ("RELAY_DLQ_RETENTION", "0s"),
        ("RELAY_MAX_IN_FLIGHT", "0"),
        ("RELAY_MAX_MESSAGE_BYTES", "0"),
        ("RELAY_MAX_MESSAGE_BYTES", "1MB"),
        ("RELAY_MAX_RETRIES", "9" * 30),
        ("RELAY_ALLOW_NETWORKS", "10.0.0.1/8"),
        ("RELAY_TOKEN", "short"),
        ("RELAY_TOKEN", "sixteen characters and blanks"),
        ("RELAY_LOG_FORMAT", "xml"),
        ("RELAY_COLOUR", "blue"),
        ("RELAY_LOG_RETENTION", "599s"),
        ("RELAY_REGION", "EU CENTRAL"),
        ("RELAY_REGION", "Zürich"),
        ("RELAY_REGION", "EU\r\nx: y"),
        ("RELAY_DATABASE_URL", "sqlite://relay.db"),
        ("RELAY_DATABASE_URL", "sqlite:relay.db"),
        ("RELAY_DATABASE_URL", "sqlite:///"),
        ("RELAY_DATABASE_URL", "mysql://host/db"),
        ("RELAY_DATABASE_URL", "postgresql://host:none/db"),
        ("RELAY_SERVICES", "2"),
        ("RELAY_PORT_NUMBER", "8080"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence_that_names_the_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load({variable: value})


def test_a_wrong_flag_is_named_as_it_was_given() -> None:
    with pytest.raises(ConfigError, match="--port"):
        load({}, flags={"port": "x"})


@pytest.mark.parametrize("value", ["0", "x", "-1", "two"])
def test_what_a_number_of_workers_may_be_is_said_alike_whatever_is_wrong(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^--workers: it must be a whole number, one or more$"):
        load({}, flags={"workers": value})


@pytest.mark.parametrize(
    "environment",
    [
        {"RELAY_CURRENT_SIGNING_KEY": "sig_0123456789abcdef"},
        {"RELAY_NEXT_SIGNING_KEY": "sig_0123456789abcdef"},
        {"RELAY_TOKEN": "0123456789abcdef", "RELAY_READONLY_TOKEN": "0123456789abcdef"},
        {"RELAY_DEFAULT_TIMEOUT": "2h", "RELAY_MAX_TIMEOUT": "1h"},
        {"RELAY_MAX_IN_FLIGHT_BYTES": "512KiB"},
        {"RELAY_MAX_MESSAGE_BYTES": "65MiB"},
        {
            "RELAY_CURRENT_SIGNING_KEY": "sig_0123456789abcdef",
            "RELAY_NEXT_SIGNING_KEY": "sig_0123456789abcdef",
        },
    ],
)
def test_settings_that_contradict_each_other_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="RELAY_"):
        load(environment)


def test_the_service_links_of_kubernetes_are_no_settings() -> None:
    links = {
        "RELAY_SERVICE_HOST": "10.0.0.1",
        "RELAY_SERVICE_PORT": "8080",
        "RELAY_SERVICE_PORT_HTTP": "8080",
        "RELAY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "RELAY_PORT_8080_TCP_PROTO": "tcp",
        "RELAY_PORT_8080_TCP_PORT": "8080",
        "RELAY_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load(links) == Config()
    with pytest.raises(ConfigError, match=r"RELAY_PORT: .*Kubernetes.*enableServiceLinks: false"):
        load({**links, "RELAY_PORT": "tcp://10.0.0.1:8080"})


def test_a_database_url_with_too_few_slashes_is_told_how_many_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"--database: .*three slashes.*four"):
        load({}, flags={"database_url": "sqlite://relay.db"})


def test_a_database_url_that_is_refused_is_not_repeated_with_its_password() -> None:
    with pytest.raises(ConfigError) as refused:
        load({"RELAY_DATABASE_URL": "mysql://me:secret@host/db"})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "password",
    ["wo@rd", "wo#rd", "wo/rd", "wo?rd", "12/rd", "12?rd", "12#rd", "12/3?a=rd", "w@o#rd", "wo[rd", "12@1"],
)
def test_a_password_that_is_not_encoded_is_refused_with_what_to_do_and_no_part_of_it(password: str) -> None:
    with pytest.raises(ConfigError, match=r"percent-encoded .*PGPASSWORD") as refused:
        load({"RELAY_DATABASE_URL": f"postgresql://relay:{password}@db.internal/relay"})
    for part in re.split("[^a-z]", password):
        assert len(part) < 2 or part not in str(refused.value).replace("password", "")
    encoded = f"postgresql://relay:{quote(password, safe='')}@db.internal/relay"
    assert load({"RELAY_DATABASE_URL": encoded}).database_url == encoded


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40@h1:1,h2:2/db?schema=mine&sslmode=require&pooler=transaction&host=%2Ftmp",
        "postgresql://u@[::1]:5432/db",
        "postgresql:///db?host=/tmp&user=me@there&password=p@ss/word",
        "postgresql://h?dbname=db",
        "postgres://h/db?pooler=",
    ],
)
def test_what_may_be_in_the_url_of_a_postgres_may_be_there(url: str) -> None:
    assert load({"RELAY_DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@host", "postgresql://host/", "postgresql://?host=/tmp"]
)
def test_a_postgres_url_without_a_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="RELAY_DATABASE_URL: it names no database") as refused:
        load({"RELAY_DATABASE_URL": url})
    assert "secret" not in str(refused.value)


def test_a_misspelt_variable_is_refused_with_the_one_that_was_probably_meant() -> None:
    with pytest.raises(
        ConfigError, match=r"^RELAY_TOKNE is not a setting of the relay; did you mean RELAY_TOKEN"
    ):
        load({"RELAY_TOKNE": "x"})
    with pytest.raises(ConfigError, match=r"^RELAY_COFFEE is not a setting of the relay; see deploy/"):
        load({"RELAY_COFFEE": "x"})


def test_variables_of_others_and_of_the_test_suite_are_left_alone() -> None:
    assert load({"PATH": "/bin", "RELAY_TEST_POSTGRES_URL": "x", "RELAYED": "1"}) == Config()


def test_every_setting_has_a_reason_and_stands_in_the_example() -> None:
    text = example()
    for field in dataclasses.fields(Config):
        assert field.metadata["reason"].endswith("."), field.name
        assert f"#RELAY_{field.name.removesuffix('_ms').upper()}=" in text


def test_the_values_in_the_example_are_accepted_and_where_there_is_a_default_they_are_it() -> None:
    environment = dict(
        line[1:].split("=", 1) for line in example().splitlines() if line.startswith("#RELAY_")
    )
    illustrations = {"RELAY_DATABASE_URL", "RELAY_ALLOW_NETWORKS"}
    load({name: value for name, value in environment.items() if name in illustrations})
    assert load({name: value for name, value in environment.items() if name not in illustrations}) == Config()


def test_the_example_file_is_the_one_the_code_prints() -> None:
    path = Path(__file__).parent.parent / "deploy/relay.env.example"
    assert path.read_text() == example(), "run: .venv/bin/python -m relay.config > deploy/relay.env.example"


def test_a_switch_is_yes_or_no() -> None:
    assert load({"RELAY_MIGRATE": "no"}).migrate is False
    assert load({}).migrate is True
    with pytest.raises(ConfigError, match="RELAY_MIGRATE: it must be yes or no"):
        load({"RELAY_MIGRATE": "1"})
