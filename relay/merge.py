"""Several Prometheus texts as one: what the processes of one relay counted, added up."""

from collections.abc import Collection, Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

#: What only ever grows, and is therefore added.
_GROWING = ("counter", "histogram", "summary")


def merged(texts: Sequence[bytes], *, summed: Collection[str]) -> bytes:
    """One text for all of them.

    Counters and histograms are added, and so are the gauges named in `summed`. Any other gauge says something
    about what the processes share: the first text that has it is believed.
    """
    families: dict[str, Metric] = {}
    for text in texts:
        for family in _families(text):
            known = families.get(family.name)
            families[family.name] = family if known is None else _joined(known, family, summed)
    return _text(families.values())


def growing(text: bytes) -> bytes:
    """The part of a text that must never get smaller: what outlives the process that counted it."""
    return _text(family for family in _families(text) if family.type in _GROWING)


def _joined(one: Metric, other: Metric, summed: Collection[str]) -> Metric:
    if one.type not in _GROWING and one.name not in summed:
        return one
    values = {_key(sample): sample.value for sample in one.samples}
    for sample in other.samples:
        key = _key(sample)
        values[key] = values.get(key, 0) + sample.value
    joined = Metric(one.name, one.documentation, one.type)
    joined.samples = [Sample(name, dict(labels), value) for (name, labels), value in values.items()]
    return joined


def _key(sample: Sample) -> tuple[str, tuple[tuple[str, str], ...]]:
    return sample.name, tuple(sample.labels.items())


def _families(text: bytes) -> Iterable[Metric]:
    return text_string_to_metric_families(text.decode())


def _text(families: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Gathered(families))
    return generate_latest(registry)


class _Gathered(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
