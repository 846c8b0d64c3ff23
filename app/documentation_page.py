"""The API's description as a page for people: made of the OpenAPI document alone, no scripts, readable as it is.

`page/style.css` and `page/docs.css` belong to the page for people (app.page), and are asked for beside this one.
"""

import json
import re
import shlex
from collections.abc import Iterator
from html import escape
from typing import Any

from app.errors import PROBLEM_MEDIA_TYPE

_FIRST_STEPS = """\
# Where the service is, and the key to it, if it has keys.
export VSR_URL=http://127.0.0.1:8000 VSR_API_KEY=vsr_your-own-key
# Send a video. The answer is the job, with its id.
curl -H "X-API-Key: $VSR_API_KEY" -F file=@holiday.mp4 "$VSR_URL/v1/jobs"
# Follow it to its end, then get the finished file.
curl -H "X-API-Key: $VSR_API_KEY" -N "$VSR_URL/v1/jobs/ID/events"
curl -H "X-API-Key: $VSR_API_KEY" -OJ "$VSR_URL/v1/jobs/ID/result\""""
_JSON = "application/json"


def documentation_page(document: dict[str, Any]) -> str:
    """HTML, whole. `document`: OpenAPI 3.1, with examples."""
    title = f"{escape(document['info']['title'])} {escape(document['info']['version'])}"
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag[operation["tags"][0]].append((method.upper(), path, operation))
    index = "".join(
        f'<li><a href="#{tag}">{tag.capitalize()}</a> <span class="hint">{len(calls)}</span></li>'
        for tag, calls in by_tag.items()
    )
    sections = "".join(
        f'<section aria-labelledby="{tag["name"]}"><h2 id="{tag["name"]}">{tag["name"].capitalize()}</h2>'
        f'<p class="lead">{_words(tag["description"])}</p>'
        f"{''.join(_call(document, *call) for call in by_tag[tag['name']])}</section>"
        for tag in document["tags"]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: the API</title>"
        '<link rel="icon" href="page/icon.svg"><link rel="stylesheet" href="page/style.css">'
        '<link rel="stylesheet" href="page/docs.css"></head><body>'
        '<header class="masthead"><a class="wordmark" href="./"><span class="mark"></span>twostep</a>'
        '<nav aria-label="Elsewhere"><a href="./">Videos</a> <a href="openapi.json">openapi.json</a></nav></header>'
        f'<main class="docs"><h1>The API</h1><p class="lead">{_words(document["info"]["description"])}</p>'
        f"<h2>First steps</h2>{_code(_FIRST_STEPS)}"
        "<p>A browser that has a session needs no key of its own in requests. Every answer has a header "
        "<code>X-Request-ID</code>; quote it to the operator.</p>"
        f'<nav aria-label="Calls"><ul class="index">{index}<li><a href="#problems">Problems</a></li></ul></nav>'
        f"{sections}{_problems(document)}</main></body></html>"
    )


def _call(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    """One call, folded up."""
    body = operation.get("requestBody", {}).get("content", {})
    return (
        f'<details class="call" id="{escape(operation["operationId"])}"><summary>'
        f'<code class="{method.lower()}">{method} {escape(path)}</code> <span>{_words(operation["summary"])}</span>'
        f"</summary>{_paragraphs(operation.get('description', ''))}"
        f"{_code(_curl(method, path, operation))}"
        f"{_table('Parameters', _parameters(document, operation))}"
        f"{''.join(_table(f'Body, {kind}', _fields(document, content)) for kind, content in body.items())}"
        f"{''.join(_answer(status, answer) for status, answer in sorted(operation['responses'].items()))}"
        f"{_problem_codes(operation)}</details>"
    )


def _curl(method: str, path: str, operation: dict[str, Any]) -> str:
    """The call as a command, with the example's values."""
    words = ["curl"]
    if not path.startswith(("/healthz", "/readyz", "/v1/session")):
        words.append('-H "X-API-Key: $VSR_API_KEY"')
    bodies = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in bodies:
        words.append("-F file=@holiday.mp4 -F preset=aligned")
    elif _JSON in bodies:
        words += [f"-X {method}", "--json " + shlex.quote(json.dumps(bodies[_JSON]["example"]))]
    elif method == "PUT":
        words.append("-T holiday.mp4")
    elif method == "PATCH":
        words.append("-X PATCH --data-binary @rest -H 'Content-Type: application/offset+octet-stream'")
    elif method == "HEAD":
        words.append("-I")
    elif method != "GET":
        words.append(f"-X {method}")
    if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
        words.append("-N")
    for parameter in operation.get("parameters", []):
        example = str(parameter.get("example", ""))
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", example)
        elif parameter["in"] == "header" and parameter["required"]:
            words.append(shlex.quote(f"-H{parameter['name']}: {example}").replace("'-H", "-H '", 1))
    return " ".join([*words, f'"$VSR_URL{path}"'])


def _parameters(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for parameter in operation.get("parameters", []):
        place = parameter["in"] + (", needed" if parameter["required"] else "")
        kind = f"{place}; {_kind(document, parameter['schema'])}"
        yield parameter["name"], kind, parameter.get("description", "")


def _fields(document: dict[str, Any], content: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Of a JSON object or a form. What may be one of several objects has the fields of all."""
    schema = _resolved(document, content["schema"])
    seen: set[str] = set()
    for variant in schema.get("anyOf", schema.get("oneOf", [schema])):
        whole = _resolved(document, variant)
        for name, field in whole.get("properties", {}).items():
            if name not in seen:
                seen.add(name)
                needed = " (needed)" if name in whole.get("required", []) else ""
                description = field.get("description") or _resolved(document, field).get("description", "")
                yield name, _kind(document, field) + needed, description


def _kind(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """In a few words: what it may be, and what it is if left out."""
    schema = {**_resolved(document, schema), **{name: value for name, value in schema.items() if name != "$ref"}}
    variants = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    if variants:
        words = " or ".join(_kind(document, one) for one in variants)
    elif "enum" in schema:
        words = ", ".join(str(one) for one in schema["enum"])
    elif "const" in schema:
        words = str(schema["const"])
    elif schema.get("type") == "array":
        words = f"list of {_kind(document, schema['items'])}"
    else:
        words = "bytes" if schema.get("format") == "binary" else str(schema.get("type", "anything"))
        least = schema.get("minimum", schema.get("exclusiveMinimum"))
        most = schema.get("maximum", schema.get("exclusiveMaximum"))
        words += f" {least} to {most}" if least is not None and most is not None else ""
    default = schema.get("default")
    return words + (f"; left out: {json.dumps(default)}" if default not in (None, "") else "")


def _answer(status: str, answer: dict[str, Any]) -> str:
    """A good one, or a bad one that is no problem+json."""
    contents = {kind: content for kind, content in answer.get("content", {}).items() if kind != PROBLEM_MEDIA_TYPE}
    if not contents and answer.get("content"):
        return ""
    kinds = ", ".join(contents) or "no body"
    headers = ", ".join(answer.get("headers", {}))
    told = "" if answer["description"] == "Successful Response" else f" {_words(answer['description'].rstrip('.'))}."
    examples = "".join(
        _code(shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False))
        for content in contents.values()
        if (shown := content.get("example")) is not None
    )
    return (
        f"<h3>{status} <span>{escape(kinds)}</span></h3>"
        f"<p>{told}{f' Headers: {escape(headers)}.' if headers else ''}</p>{examples}"
    )


def _problem_codes(operation: dict[str, Any]) -> str:
    codes = [
        f'<li>{status} <a href="#problem-{code}"><code>{code}</code></a></li>'
        for status, answer in sorted(operation["responses"].items())
        for code in answer.get("content", {}).get(PROBLEM_MEDIA_TYPE, {}).get("examples", {})
    ]
    return f'<h3>Problems</h3><ul class="codes">{"".join(codes)}</ul>' if codes else ""


def _problems(document: dict[str, Any]) -> str:
    """Every one, once, with an example."""
    found: dict[str, dict[str, Any]] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            for answer in operation["responses"].values():
                examples = answer.get("content", {}).get(PROBLEM_MEDIA_TYPE, {}).get("examples", {})
                found |= {code: example["value"] for code, example in examples.items()}
    rows = "".join(
        f'<details class="call" id="problem-{code}"><summary><code>{problem["status"]} {code}</code> '
        f"<span>{_words(problem['title'])}</span></summary>{_code(json.dumps(problem, indent=2, ensure_ascii=False))}"
        "</details>"
        for code, problem in sorted(found.items(), key=lambda one: (one[1]["status"], one[0]))
    )
    return (
        '<section aria-labelledby="problems"><h2 id="problems">Problems</h2><p class="lead">Whatever goes wrong is '
        "told as <code>application/problem+json</code> (RFC 9457). Programs switch on <code>code</code>, which never "
        "changes; <code>detail</code> is for people. Where another try may help, <code>Retry-After</code> says when."
        f"</p>{rows}</section>"
    )


def _table(title: str, rows: Iterator[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th>'
        f"<td>{_words(kind)}</td><td>{_words(description)}</td></tr>"
        for name, kind, description in rows
    )
    return f"<h3>{escape(title)}</h3><table>{cells}</table>" if cells else ""


def _code(text: str) -> str:
    # Whoever has the keys alone can scroll only what has the focus; all but the longest is seen as a whole.
    return f'<pre tabindex="0"><code>{escape(text, quote=False)}</code></pre>'


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_words(one)}</p>" for one in text.split("\n\n") if one.strip())


def _words(text: str) -> str:
    """Our docstrings know one kind of markup: code between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"][name] if name else schema
    return found
