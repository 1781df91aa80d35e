"""What is in deploy/ fits the relay: settings, paths, metrics and ports are real. No container is started here."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config import Config, ConfigError, load
from relay.domain.duration import parse_duration
from relay.lead import CLOSING_MS, LONGEST_SILENCE_MS
from relay.metrics import Metrics, depths
from relay.peers import LONGEST_PROBE_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "relay"
TEMPLATES = sorted((CHART / "templates").iterdir())

SETTINGS = {f"RELAY_{name.removesuffix('_ms').upper()}" for name in Config.__dataclass_fields__}
PATHS = set(yaml.safe_load((ROOT / "openapi.yaml").read_text())["paths"])
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PROXY = (DEPLOY / "haproxy.cfg").read_text()
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
#: What Kubernetes allows between SIGTERM and SIGKILL must be longer than this.
SHUTDOWN_S = Config().shutdown_timeout_ms / 1000
#: And whoever asks /readyz must wait for longer than it may take to answer.
READINESS_S = LONGEST_PROBE_S


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from leaves(below, f"{path}.{name}")
    else:
        yield path.removeprefix("."), value


def template(name: str) -> str:
    return (CHART / "templates" / name).read_text()


# Metrics


def known_metrics() -> set[str]:
    names = metrics_in(depths(live=0, dead_letters=0, oldest_due_seconds=0).decode())
    for family in Metrics().registry.collect():
        names |= {
            "counter": {f"{family.name}_total"},
            "histogram": {f"{family.name}_{part}" for part in ("bucket", "count", "sum")},
            "gauge": {family.name},
        }[family.type]
    return names


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\brelay_[a-z_]+\b", text))


@pytest.mark.parametrize("name", ["prometheus-alerts.yaml", "grafana-dashboard.json"])
def test_every_metric_that_is_watched_exists(name: str) -> None:
    watched = metrics_in((DEPLOY / name).read_text())
    assert watched
    # A sentence may speak of a histogram as a whole.
    assert watched <= known_metrics() | {family.name for family in Metrics().registry.collect()}


def test_every_metric_but_bookkeeping_is_on_the_dashboard() -> None:
    shown = metrics_in((DEPLOY / "grafana-dashboard.json").read_text())
    hidden = known_metrics() - shown
    assert {name for name in hidden if not name.endswith(("_count", "_sum"))} == {"relay_pruned_rows_total"}


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            expression = target["expr"]
            assert expression.count("(") == expression.count(")")
            assert expression.count("{") == expression.count("}")
            used = set(re.findall(r"\$([a-z]+)\b", expression))
            assert used <= variables, expression
            assert '{job=~"$job"' in expression


# systemd


def test_systemd_starts_a_relay_again_however_long_its_database_is_away() -> None:
    unit, service = re.split(r"^\[Service\]$", (DEPLOY / "relay.service").read_text(), flags=re.MULTILINE)
    assert "\nStartLimitIntervalSec=0\n" in unit
    assert "\nRestart=always\n" in service
    (pause,) = re.findall(r"^RestartSec=(\d+)$", service, re.MULTILINE)
    assert 2 <= int(pause) <= 10
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
    assert int(patience) > SHUTDOWN_S


# Compose


def relays() -> dict[str, Any]:
    return {name: service for name, service in COMPOSE["services"].items() if name.startswith("relay")}


def test_two_relays_one_database_and_a_proxy_are_composed() -> None:
    assert set(COMPOSE["services"]) == {"relay-1", "relay-2", "postgres", "proxy"}
    one, two = relays().values()
    assert one == two
    assert one["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    context = (DEPLOY / one["build"]["context"]).resolve()
    assert (context / one["build"]["dockerfile"]).exists()


def test_the_relays_of_compose_are_given_settings_that_exist_and_can_be_read() -> None:
    given = dict(relays()["relay-1"]["environment"])
    assert set(given) <= SETTINGS
    filled = {name: re.sub(r"\$\{\w+:\?[^}]*\}", "0123456789abcdef", value) for name, value in given.items()}
    config = load(filled)
    assert config.database_url == "postgresql://relay:0123456789abcdef@postgres/relay"
    assert config.token == "0123456789abcdef"
    assert config.trusted_proxies


def test_what_compose_requires_is_named_in_its_first_lines() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert required == {"POSTGRES_PASSWORD", "RELAY_TOKEN"}
    assert all(f"{name}=" in comment for name in required)


def test_compose_lets_a_relay_finish_and_asks_it_whether_it_is_ready() -> None:
    service = relays()["relay-1"]
    assert parse_duration(service["stop_grace_period"]) / 1000 > SHUTDOWN_S
    (url,) = re.findall(r"http://127\.0\.0\.1:8080(/\w+)", " ".join(service["healthcheck"]["test"]))
    assert url in PATHS
    (patience,) = re.findall(r"timeout=(\d+)", " ".join(service["healthcheck"]["test"]))
    assert READINESS_S < int(patience) < parse_duration(service["healthcheck"]["timeout"]) / 1000
    assert service["restart"] == "unless-stopped"
    (patience,) = re.findall(r"timeout check (\d+)s", PROXY)
    assert int(patience) > READINESS_S


def test_every_volume_and_every_host_that_is_named_exists() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
        assert set(service.get("depends_on", ())) <= set(services)


def test_the_proxy_knows_every_relay_by_its_name_and_port() -> None:
    upstreams = re.findall(r"^\tserver (\S+) (\S+):(\d+)$", PROXY, re.MULTILINE)
    assert {(name, host) for name, host, _ in upstreams} == {(name, name) for name in relays()}
    assert {port for _, _, port in upstreams} == {str(Config().port)}
    (published,) = COMPOSE["services"]["proxy"]["ports"]
    assert re.findall(r"^\tbind :(\d+)$", PROXY, re.MULTILINE) == [published.partition(":")[2]]


def test_the_proxy_asks_whether_relays_are_ready_and_shows_what_is_inside_to_nobody() -> None:
    assert re.findall(r"option httpchk GET (\S+)", PROXY) == ["/readyz"]
    (hidden,) = re.findall(r"return status 404 if \{ path (.*) \}", PROXY)
    assert set(hidden.split()) == {"/metrics", "/healthz", "/readyz"} <= PATHS
    assert "option forwardfor" in PROXY


def test_the_proxy_asks_another_relay_only_when_it_found_no_connection() -> None:
    assert "option redispatch 1" in PROXY
    assert re.findall(r"retry-on (.*)", PROXY) == ["conn-failure"]


def test_the_image_can_talk_to_postgres() -> None:
    assert "'.[postgres,ed25519]'" in (DEPLOY / "Dockerfile").read_text()


def test_the_image_is_built_from_what_the_build_copies_and_nothing_else_of_a_clone() -> None:
    copies = re.findall("^COPY (?!--from)(.*) [^ ]+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    ignored, *exceptions = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert ignored == "*"
    assert {line.removeprefix("!") for line in exceptions if line.startswith("!")} == set(
        " ".join(copies).split()
    )


def test_the_image_and_the_wheel_have_the_description_of_the_api() -> None:
    (copied,) = re.findall(
        r"^COPY (pyproject\.toml .*) \./$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
    )
    assert "openapi.yaml" in copied.split()
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    forced = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert forced == {"openapi.yaml": "relay/api/openapi.yaml"}


# The chart


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_opens_and_closes_its_blocks(path: Path) -> None:
    text = path.read_text()
    assert text.count("{{") == text.count("}}")
    opened = re.findall(r"\{\{-?\s*(?:if|range|with|define)\b", text)
    assert len(opened) == len(re.findall(r"\{\{-?\s*end\s*-?\}\}", text))


def test_templates_use_every_value_and_no_other() -> None:
    text = "".join(path.read_text() for path in TEMPLATES)
    used = set(re.findall(r"\.Values\.([A-Za-z_.]+)", text))
    known = {path for path, _ in leaves(VALUES)}
    for name in used:
        assert any(path == name or path.startswith(f"{name}.") for path in known), name
    for path in known:
        assert any(path == name or path.startswith(f"{name}.") for name in used), path


def test_templates_include_what_is_defined() -> None:
    text = "".join(path.read_text() for path in TEMPLATES)
    assert set(re.findall(r'include "([^"]+)"', text)) == set(re.findall(r'define "([^"]+)"', text))


def test_the_settings_of_the_chart_exist_and_can_be_read() -> None:
    secret = {name: value for name, value in VALUES["secret"].items() if name != "existing"}
    named = set(VALUES["config"]) | set(secret)
    assert named | set(re.findall(r"\bRELAY_[A-Z_]+\b", template("secret.yaml"))) <= SETTINGS
    assert set(secret) == set(re.findall(r"^  (RELAY_[A-Z_]+):", template("secret.yaml"), re.MULTILINE))
    environment = {"RELAY_DATABASE_URL": "postgresql://relay@host/relay", "RELAY_TOKEN": "0123456789abcdef"}
    assert all(isinstance(value, str) for value in VALUES["config"].values())
    config = load({**secret, **VALUES["config"], **environment})
    assert config.shutdown_timeout_ms == VALUES["shutdownSeconds"] * 1000
    assert VALUES["terminationMargin"] * 1000 >= 20_000


def test_what_the_chart_and_compose_say_a_token_is_is_one() -> None:
    for path in (CHART / "values.yaml", DEPLOY / "compose.yaml"):
        (least,) = re.findall(r"at least (\d+) characters without blanks", path.read_text())
        load({"RELAY_TOKEN": "x" * int(least)})
        with pytest.raises(ConfigError, match="RELAY_TOKEN"):
            load({"RELAY_TOKEN": "x" * (int(least) - 1)})


def test_secrets_are_in_the_secret_and_nowhere_else() -> None:
    secrets = set(VALUES["secret"]) - {"existing"}
    assert not secrets & set(VALUES["config"])
    for path in TEMPLATES:
        if path.name != "secret.yaml":
            assert not any(name in path.read_text() for name in secrets), path.name


def test_probes_ask_paths_that_exist_at_the_port_the_relay_listens_on() -> None:
    text = template("deployment.yaml")
    probes = dict(re.findall(r"(\w+Probe):\n\s+httpGet:\n\s+path: (\S+)\n\s+port: http\n", text))
    assert probes == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    (patience,) = re.findall(r"path: /readyz\n(?:.*\n){2}\s+timeoutSeconds: (\d+)", text)
    assert int(patience) > READINESS_S
    assert set(probes.values()) | {VALUES["podAnnotations"]["prometheus.io/path"]} <= PATHS
    (port,) = re.findall(r'RELAY_PORT\n\s+value: "(\d+)"', text)
    assert re.findall(r"containerPort: (\d+)", text) == [port]
    assert VALUES["podAnnotations"]["prometheus.io/port"] == port


def test_variables_kubernetes_makes_of_services_do_not_reach_the_relay() -> None:
    """A Service called relay would be described as RELAY_PORT=tcp://..., and stop the start."""
    assert "enableServiceLinks: false" in template("deployment.yaml")


def test_a_pod_drains_before_it_is_killed_and_after_its_successor_is_ready() -> None:
    text = template("deployment.yaml")
    assert "maxUnavailable: 0" in text
    grace = "add .Values.unannounceSeconds .Values.shutdownSeconds .Values.terminationMargin"
    assert f"terminationGracePeriodSeconds: {{{{ {grace} }}}}" in text
    assert VALUES["replicas"] > VALUES["disruption"]["minAvailable"]


@pytest.mark.parametrize(
    "path", [path for path in TEMPLATES if path.suffix == ".yaml"], ids=lambda path: path.name
)
def test_a_template_is_yaml_of_its_kind_between_its_blocks(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not re.fullmatch(r"\s*\{\{-.*\}\}", line)]
    plain = re.sub(r'"?\{\{[^}]*\}\}(?::\{\{[^}]*\}\})?"?', "filled", "\n".join(lines))
    document = yaml.safe_load(plain)
    assert set(document) >= {"apiVersion", "kind", "metadata"}
    kinds = {"deployment": "Deployment", "service": "Service", "configmap": "ConfigMap", "secret": "Secret"}
    assert document["kind"] == {**kinds, "pdb": "PodDisruptionBudget"}[path.stem]


def test_the_chart_and_the_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()


# Patience


def test_who_supervises_a_relay_waits_longer_for_its_end_than_it_waits_for_a_worker_that_hangs() -> None:
    (systemd,) = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "relay.service").read_text(), re.MULTILINE)
    compose = parse_duration(relays()["relay-1"]["stop_grace_period"]) // 1000
    kubernetes = VALUES["shutdownSeconds"] + VALUES["terminationMargin"]
    own = (Config().shutdown_timeout_ms + CLOSING_MS) / 1000
    assert {int(systemd), compose, kubernetes} == {own + 5}


def test_a_pod_is_not_restarted_for_a_worker_that_the_relay_replaces_by_itself() -> None:
    (period, threshold) = re.findall(
        r"livenessProbe:\n(?: .*\n)*? +periodSeconds: (\d+)\n(?: .*\n)*? +failureThreshold: (\d+)\n",
        template("deployment.yaml"),
    )[0]
    assert int(period) * int(threshold) * 1000 >= 2 * LONGEST_SILENCE_MS
