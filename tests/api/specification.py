"""openapi.yaml as a measure: does a response agree with it, and which of its promises have been seen kept?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

PATH = Path(__file__).parents[2] / "openapi.yaml"
METHODS = ("get", "post", "put", "patch", "delete")

#: OpenAPI has one name for the parameter of one path, whatever the method makes of it.
ALIASES = {"/v2/schedules/{destination}": "/v2/schedules/{schedule_id}"}

#: An operation and one of its statuses.
Answered = tuple[str, str, int]


class Specification:
    """Remembers every answer it was shown, every member it found in one or missed there, and what errors said."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = yaml.safe_load(PATH.read_text())
        self.answered: set[Answered] = set()
        self.members: set[str] = set()
        #: The sentences of error answers.
        self.errors: set[str] = set()
        self.absences: set[str] = set()

    def operations(self) -> Iterator[tuple[str, str]]:
        """(METHOD, path) of everything described."""
        for path, item in self.document["paths"].items():
            for method in METHODS:
                if method in item:
                    yield method.upper(), path

    def operation(self, method: str, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.document["paths"][path][method.lower()]
        return found

    def parameters(self, method: str, path: str, place: str) -> set[str]:
        """The names of an operation's parameters in `place`: query or header."""
        return set(self.described(method, path, place))

    def described(self, method: str, path: str, place: str) -> dict[str, dict[str, Any]]:
        """An operation's parameters in `place`, by name: query, header or path."""
        described = [
            *self.document["paths"][path].get("parameters", ()),
            *self.operation(method, path).get("parameters", ()),
        ]
        return {
            parameter["name"]: parameter
            for parameter in map(self.resolved, described)
            if parameter["in"] == place
        }

    def request_examples(self, method: str, path: str) -> Iterator[Any]:
        """The bodies that an operation shows: text as text, all else to be sent as JSON."""
        operation = self.operation(method, path)
        if "requestBody" in operation:
            for media in self.resolved(operation["requestBody"])["content"].values():
                if "example" in media:
                    yield media["example"]

    def request_schema(self, method: str, path: str) -> dict[str, Any]:
        """Of the JSON that an operation takes."""
        content = self.resolved(self.operation(method, path)["requestBody"])["content"]
        schema: dict[str, Any] = content["application/json"]["schema"]
        return schema

    def promised(self) -> set[Answered]:
        """Every status of every operation."""
        return {
            (method, path, int(status))
            for method, path in self.operations()
            for status in self.operation(method, path)["responses"]
        }

    def promised_members(self) -> set[str]:
        """Every member of every object that some response may hold."""
        found: set[str] = set()
        for method, path, status in self.promised():
            for media in self._response(method, path, status).get("content", {}).values():
                self._note(media["schema"], found)
        return found

    def promised_absences(self) -> set[str]:
        """Every member that some response may lack."""
        found: set[str] = set()
        for method, path, status in self.promised():
            for media in self._response(method, path, status).get("content", {}).values():
                self._note(media["schema"], set(), found)
        return found

    def violations(self, method: str, path: str, status: int, content_type: str, body: bytes) -> list[str]:
        """What a response has that is not described; remembers what it has that is."""
        here = f"{method} {path} {status}"
        if (method, path, status) not in self.promised():
            return [f"{here} is not described"]
        described = self._response(method, path, status)
        if "content" not in described:
            self.answered.add((method, path, status))
            return [f"{here}: a body is not described"] if body else []
        media_type = content_type.partition(";")[0]
        media = described["content"].get(media_type)
        if media is None:
            return [f"{here}: {media_type} is not described"]
        self.answered.add((method, path, status))
        if media_type != "application/json":
            return []
        value = json.loads(body)
        if isinstance(value, dict) and "error" in value and status >= 400:
            self.errors.add(value["error"])
        problems = [
            f"{here}: {problem.json_path}: {problem.message}"
            for problem in self._validator(media["schema"]).iter_errors(value)
        ]
        if not problems:
            self._see(media["schema"], value)
        return problems

    def examples(self) -> Iterator[tuple[str, dict[str, Any], Any]]:
        """Each example of a response or a request body, with its schema."""
        for method, path in self.operations():
            operation = self.operation(method, path)
            holders = [self.resolved(response) for response in operation["responses"].values()]
            if "requestBody" in operation:
                holders.append(self.resolved(operation["requestBody"]))
            for holder in holders:
                for media in holder.get("content", {}).values():
                    if "example" in media:
                        yield f"{method} {path}", media["schema"], media["example"]

    def agrees(self, schema: dict[str, Any], value: object) -> bool:
        return bool(self._validator(schema).is_valid(value))

    def _validator(self, schema: dict[str, Any]) -> Any:
        # References are relative to the document, so it goes along.
        return Draft202012Validator({**schema, "components": self.document["components"]})

    def _response(self, method: str, path: str, status: int) -> dict[str, Any]:
        return self.resolved(self.operation(method, path)["responses"][str(status)])

    def resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        """The node, or what it refers to."""
        if "$ref" not in node:
            return node
        target: Any = self.document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return self.resolved(target)

    def _see(self, schema: dict[str, Any], value: object) -> None:
        """Remember the members of `value`, which is valid."""
        name = schema.get("$ref", "")
        schema = self.resolved(schema)
        for part in schema.get("allOf", ()):
            self._see(part, value)
        for part in schema.get("anyOf", ()):
            if self.agrees(part, value):
                self._see(part, value)
        if isinstance(value, list):
            for item in value:
                self._see(schema.get("items", {}), item)
        if isinstance(value, dict):
            for member, part in schema.get("properties", {}).items():
                if member in value:
                    self.members.add(f"{name}/{member}")
                    self._see(part, value[member])
                else:
                    self.absences.add(f"{name}/{member}")

    def _note(self, schema: dict[str, Any], found: set[str], optional: set[str] | None = None) -> None:
        name = schema.get("$ref", "")
        schema = self.resolved(schema)
        for part in (*schema.get("allOf", ()), *schema.get("anyOf", ())):
            self._note(part, found, optional)
        if "items" in schema:
            self._note(schema["items"], found, optional)
        for member, part in schema.get("properties", {}).items():
            found.add(f"{name}/{member}")
            if optional is not None and member not in schema.get("required", ()):
                optional.add(f"{name}/{member}")
            self._note(part, found, optional)
