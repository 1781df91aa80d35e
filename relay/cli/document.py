"""What a relay answered: JSON whose shape is trusted only as far as it is looked at."""

import json
from typing import Any, NoReturn

from relay.cli.outcome import REFUSED, Failure


class Document(dict[str, Any]):
    """A JSON object. `Failure` when a member is asked for that is not there: it is no relay that answered."""

    def __missing__(self, key: str) -> NoReturn:
        raise strange(f'without "{key}"')

    def objects(self, key: str) -> list["Document"]:
        return objects(self[key])


def parse(content: bytes) -> Any:
    """The JSON value, its objects as `Document`; no content counts as an empty object. `Failure` otherwise."""
    try:
        return json.loads(content or b"{}", object_hook=Document)
    except ValueError:
        raise strange("with something that is not JSON") from None


def objects(value: Any) -> list[Document]:
    """The value as a list of objects; `Failure` when it is none."""
    if not isinstance(value, list) or not all(isinstance(entry, Document) for entry in value):
        raise strange("without a list of objects")
    return value


def strange(how: str) -> Failure:
    return Failure(f"the answer came {how}; is it a relay that answered?", REFUSED)
