"""The page for people: served by switch, loads nothing, and shows what the service answers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from service.http.api_keys import ApiKeys
from service.http.routes import Routes
from service.inference.classifier import Classifier
from service.package.files import file_record
from service.package.golden import read_golden, write_golden
from service.package.manifest import GOLDEN_FILE, package_version, read_manifest, write_manifest
from service.page.page import PAGE, SCRIPT, STYLE, page
from service.settings import Settings, read_settings
from tests.browsers import Browser, browsing
from tests.conftest import ROOT
from tests.servers import SERVICE, classify, get, routes_of, serving

SECONDS = 20
KEY = "a-key-0123456789"
ATTACK = """<img src=x onerror="alert(1)">&'</script>"""
# Characters that are special to a shell, a terminal or JSON.
AWKWARD = "it's \"so\" $HOME `id` \\ !! \u202e100% \u2028 çà 🎉\nand a second line\t'"


class Elements(HTMLParser):
    """Every element with its attributes, and the content of script and style."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open].append(data)


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture(scope="module")
def client(classifier: Classifier) -> Iterator[TestClient]:
    with routes_of(classifier, ui=True) as routes:
        yield TestClient(routes)


def keys_file(folder: Path) -> Path:
    path = folder / "api-keys"
    path.write_text(f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n", "utf-8")
    return path


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("with_keys", [False, True])
def test_without_the_switch_the_page_is_an_unknown_route(
    classifier: Classifier, tmp_path: Path, method: str, with_keys: bool
) -> None:
    keys = ApiKeys(keys_file(tmp_path)) if with_keys else None
    with routes_of(classifier, keys=keys) as routes:
        client = TestClient(routes)
        answers = [client.request(method, path) for path in ("/ui", "/nowhere")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content


def test_a_variable_switches_the_page_on() -> None:
    assert not read_settings({}).ui
    assert read_settings({"WHETSTONE_UI": "1"}).ui


def test_with_the_switch_the_page_is_served(client: TestClient) -> None:
    answer = client.get("/ui")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.content == page()[0]
    head = client.head("/ui")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(answer.content)))
    other = client.post("/ui")
    assert (other.status_code, other.headers["allow"]) == (405, "GET, HEAD")


def test_the_policy_allows_only_the_pages_own_script_and_style(client: TestClient) -> None:
    answer = client.get("/ui")
    directives = [part.strip() for part in answer.headers["content-security-policy"].split(";")]
    elements = Elements(answer.text)
    sources = {}
    for name, contents in elements.inside.items():
        assert len(contents) == 1, name
        digest = hashlib.sha256(contents[0].encode()).digest()
        sources[name] = f"'sha256-{base64.b64encode(digest).decode()}'"
    assert directives == [
        "default-src 'none'",
        f"script-src {sources['script']}",
        f"style-src {sources['style']}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]


def test_the_page_loads_nothing_and_has_no_inline_handler(client: TestClient) -> None:
    content = client.get("/ui").text
    assert "://" not in content
    for tag, attributes in Elements(content).found:
        assert tag not in ("link", "base", "img", "iframe", "object")
        assert not {"src", "href", "style", "action"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag


@pytest.mark.parametrize(
    "word",
    [
        *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "createContextual"),
        *("eval(", "localStorage", "sessionStorage", "indexedDB", "cookie", "history."),
    ],
)
def test_the_script_makes_no_markup_and_stores_nothing(client: TestClient, word: str) -> None:
    assert word not in client.get("/ui").text


def test_with_api_keys_the_page_is_open_and_the_model_is_not(
    classifier: Classifier, tmp_path: Path
) -> None:
    keys = ApiKeys(keys_file(tmp_path))
    with routes_of(classifier, keys=keys, ui=True) as routes:
        client = TestClient(routes)
        assert client.get("/ui").status_code == 200
        assert client.get("/info").status_code == 401
        assert client.post("/classify", json={"input": "a"}).status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        operation = client.get("/docs.json", headers=headers).json()["paths"]["/ui"]["get"]
        assert "security" not in operation


def test_the_openapi_document_lists_the_page_where_it_is_served(
    client: TestClient, classifier: Classifier
) -> None:
    assert "/ui" in client.get("/docs.json").json()["paths"]
    with routes_of(classifier) as routes:
        assert "/ui" not in TestClient(routes).get("/docs.json").json()["paths"]


def test_the_page_is_served_before_the_model_is_loaded() -> None:
    assert TestClient(Routes(Settings(ui=True))).get("/ui").status_code == 200


def test_the_pages_files_are_in_the_wheel_and_in_the_bento() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    included = yaml.safe_load((ROOT / "bentofile.yaml").read_text("utf-8"))["include"]
    for name in (PAGE, STYLE, SCRIPT):
        assert name in project["tool"]["setuptools"]["package-data"]["service.page"]
        assert any(fnmatch(f"service/page/{name}", pattern) for pattern in included), name


# In a browser.


def wait(browser: Browser, condition: str) -> None:
    """Wait until an expression in JavaScript is true."""
    deadline = time.monotonic() + SECONDS
    while not browser.run(f"return Boolean({condition});"):
        assert time.monotonic() < deadline, browser.run("return document.body.innerText;")
        time.sleep(0.05)


def text_of(browser: Browser, selector: str) -> list[str]:
    """The text of every visible element that matches."""
    found = browser.run(
        f"return [...document.querySelectorAll({json.dumps(selector)})]"
        ".filter((e) => e.checkVisibility()).map((e) => e.textContent);"
    )
    return list(found)


def press(browser: Browser, key: str, code: int, modifiers: int = 0) -> None:
    """Press a key; of the modifiers, 2 is Ctrl and 8 is Shift."""
    fields: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
    if key == "Enter" and not modifiers:
        fields["text"] = "\r"
    for kind in ("keyDown", "keyUp"):
        browser.devtools("Input.dispatchKeyEvent", type=kind, **fields)


def tab(browser: Browser) -> str:
    """The id of the element that has the focus after Tab."""
    press(browser, "Tab", 9)
    return str(browser.run("return document.activeElement.id || document.activeElement.localName;"))


def type_in(browser: Browser, field: str, text: str) -> None:
    """Replace the content of a field, as an input method does."""
    browser.run(f"const f = document.getElementById({json.dumps(field)}); f.focus(); f.select();")
    browser.devtools("Input.insertText", text=text)


def click(browser: Browser, identity: str) -> None:
    browser.run(f"document.getElementById({json.dumps(identity)}).click();")


def ask(browser: Browser, text: str) -> None:
    """Classify a text; returns when there is an answer or a refusal."""
    type_in(browser, "text", text)
    click(browser, "submit")
    wait(browser, "document.getElementById('submit').textContent === 'Classify'")


def open_page(browser: Browser, address: str, shown: str = "model") -> None:
    browser.open(f"{address}/ui")
    wait(browser, f"!document.getElementById('{shown}').hidden")


def bars(browser: Browser) -> list[tuple[str, float]]:
    """Labels and the lengths of their bars, in the order on the page."""
    rows = browser.run(
        "return [...document.querySelectorAll('.bars > li')].map((row) => ["
        "row.querySelector('.label').textContent,"
        "Number(row.querySelector('.fill').style.getPropertyValue('--p'))]);"
    )
    return [(label, value) for label, value in rows]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tiny_package: Path) -> Iterator[str]:
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_UI": "1",
        "WHETSTONE_EXPLAIN": "1",
        "WHETSTONE_MAX_TEXTS": "5",
        "WHETSTONE_MAX_CHARACTERS": "1000",
        "WHETSTONE_MAX_BODY_BYTES": "4000",
    }
    with serving(SERVICE, environment) as served:
        yield served


@pytest.mark.slow
def test_a_text_is_answered_with_bars(
    browser: Browser, address: str, classifier: Classifier
) -> None:
    open_page(browser, address)
    manifest = classifier.manifest
    assert text_of(browser, "h1") == ["tiny"]
    assert manifest.version in text_of(browser, "#version")[0]
    assert text_of(browser, ".names li") == list(manifest.labels)
    ask(browser, "where is my parcel?")
    answer = classify(address, {"input": "where is my parcel?"})
    (item,) = answer["data"]
    expected = sorted(zip(item["probs"], manifest.labels, strict=True), reverse=True)
    assert bars(browser) == [(label, pytest.approx(value)) for value, label in expected]
    assert text_of(browser, ".given > .label") == [item["label"]]
    assert text_of(browser, ".outcome bdi") == [item["label"]]
    assert f"Answer: {item['label']}, {item['score']:.3f}." in text_of(browser, "#status")
    facts = dict(zip(text_of(browser, "#results dt"), text_of(browser, "#results dd"), strict=True))
    assert set(facts) == {"Tokens", "Tokenize", "Queue", "Inference", "Round trip"}
    assert facts["Tokens"] == str(answer["usage"]["total_tokens"])
    assert float(facts["Inference"].removesuffix(" ms")) > 0
    assert browser.console() == []


@pytest.mark.slow
def test_every_line_is_a_text_on_request(browser: Browser, address: str) -> None:
    open_page(browser, address)
    texts = ["where is my parcel?", "thank you so much", "word " * 60]
    written = "\n\n".join(texts)
    ask(browser, written)
    assert len(text_of(browser, ".answers > li")) == 1
    click(browser, "lines")
    assert text_of(browser, "#count")[0].startswith("3 texts, ")
    ask(browser, written)
    answers = classify(address, {"input": texts})["data"]
    assert text_of(browser, ".outcome bdi") == [item["label"] for item in answers]
    assert text_of(browser, ".asked") == texts
    assert text_of(browser, "#answer-title") == ["3 answers"]
    # Only the last line was too long.
    assert text_of(browser, ".warning") == ["Only the first 32 tokens were read."]
    assert bars(browser) == []
    browser.run("document.querySelectorAll('.answers summary')[1].click();")
    wait(browser, "document.querySelector('.bars')")
    assert text_of(browser, ".given > .label") == [answers[1]["label"]]
    assert browser.console() == []


@pytest.mark.slow
def test_a_refusal_is_shown_as_a_sentence(browser: Browser, address: str) -> None:
    open_page(browser, address)
    for text, lines, message in (
        (" \n ", False, "Type a text first."),
        ("a" * 1001, False, "The text has 1001 characters, the limit is 1000."),
        ("a" * 5000, False, "This is more than the 4,000 bytes that the service takes at once"),
        ("a\n" * 6, True, "These are 6 texts, the service takes 5 at once."),
        (f"a\n{'b' * 1001}", True, "Text 2 has 1001 characters, the limit is 1000."),
    ):
        click(browser, "lines" if lines else "whole")
        ask(browser, text)
        (shown,) = text_of(browser, "#error")
        assert message.lower() in shown.lower()
        assert bars(browser) == []
    ask(browser, "a")
    assert text_of(browser, "#error") == []
    # The browser's own message about a refused request.
    assert all("Failed to load resource" in message for message in browser.console())


def rename_labels(package: Path, labels: tuple[str, ...]) -> None:
    """Rename the labels of a package, also in its golden texts."""
    manifest = read_manifest(package)
    names = dict(zip(manifest.labels, labels, strict=True))
    golden = [
        answer.model_copy(update={"label": names[answer.label]}) for answer in read_golden(package)
    ]
    write_golden(package, golden)
    files = {**manifest.files, GOLDEN_FILE: file_record(package / GOLDEN_FILE)}
    changed = manifest.model_copy(update={"labels": labels, "files": files})
    version = package_version(files, changed)
    write_manifest(package, changed.model_copy(update={"version": version}))


def unlock(browser: Browser) -> None:
    """Type the API key in and wait for the model."""
    type_in(browser, "key", KEY)
    press(browser, "Enter", 13)
    wait(browser, "!document.getElementById('model').hidden")


def check_wrong_keys(browser: Browser) -> None:
    """A wrong key is refused with a sentence, and the field keeps the focus."""
    assert browser.run("return document.getElementById('model').hidden;")
    assert text_of(browser, "#key-error") == []
    for wrong, message in (("wrong", "does not accept this key"), ("päss", "beyond ASCII")):
        type_in(browser, "key", wrong)
        press(browser, "Enter", 13)
        wait(browser, f"document.getElementById('key-error').textContent.includes('{message}')")
    assert browser.run("return document.activeElement.id;") == "key"


def run_in_shell(command: str) -> str:
    """The output of a command in bash, which finds the API key in its environment."""
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "KEY": KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def check_command(browser: Browser) -> None:
    """The command on the page sends the same request for any text, and does not hold the key."""
    ask(browser, AWKWARD)
    (command,) = text_of(browser, "#curl")
    assert "Bearer $KEY" in command
    assert "\\u202e" in command and "\u202e" not in command
    answered = json.loads(run_in_shell(command))
    assert answered["data"][0]["label"] in text_of(browser, ".outcome bdi")
    assert [str(answered["usage"]["total_tokens"])] == text_of(browser, "#results dd")[:1]
    sent = run_in_shell(command.replace("curl -s", "printf '<%s>'"))
    assert json.loads(sent.rpartition("<-d>")[2][1:-1]) == {"input": AWKWARD}


def check_key_is_not_kept(browser: Browser) -> None:
    kept = browser.run(
        "return [location.href, document.documentElement.outerHTML, document.cookie,"
        " JSON.stringify({...localStorage}), JSON.stringify({...sessionStorage})].join();"
    )
    assert KEY not in kept


@pytest.mark.slow
def test_the_page_asks_for_a_key_and_sends_it_nowhere_else(
    browser: Browser, package: Path, tmp_path: Path
) -> None:
    labels = (ATTACK, "__proto__", "مرتجع")
    rename_labels(package, labels)
    environment = {
        "WHETSTONE_PACKAGE": str(package),
        "WHETSTONE_UI": "1",
        "WHETSTONE_API_KEYS_FILE": str(keys_file(tmp_path)),
    }
    with serving(SERVICE, environment) as served:
        open_page(browser, served, "unlock")
        check_wrong_keys(browser)
        unlock(browser)
        assert text_of(browser, "#key-error") == []
        assert browser.run("return document.activeElement.id;") == "text"

        # Neither a label nor a text is markup.
        assert sorted(text_of(browser, ".names li")) == sorted(labels)
        ask(browser, ATTACK)
        assert sorted(label for label, _ in bars(browser)) == sorted(labels)
        assert text_of(browser, ".asked") == [ATTACK]
        assert browser.run("return document.querySelectorAll('img, main script').length;") == 0

        check_command(browser)
        check_key_is_not_kept(browser)
        # The key is gone after the page was opened again.
        open_page(browser, served, "unlock")
        assert browser.run("return document.getElementById('key').value;") == ""
        unlock(browser)
    # The server has ended.
    ask(browser, "hello")
    assert "cannot be reached" in text_of(browser, "#error")[0]
    assert all("Failed to load resource" in message for message in browser.console())


@pytest.mark.slow
def test_the_page_can_be_used_by_keyboard_alone(browser: Browser, address: str) -> None:
    open_page(browser, address)
    assert [tab(browser) for _ in range(3)] == ["text", "whole", "submit"]
    press(browser, "Tab", 9, 8)
    press(browser, "Tab", 9, 8)
    browser.devtools("Input.insertText", text="thank you")
    press(browser, "Enter", 13, 2)
    wait(browser, "document.querySelector('.bars')")
    assert text_of(browser, ".asked") == ["thank you"]
    # The button without an id asks why.
    expected = ["whole", "submit", "button", "copy", "curl"]
    assert [tab(browser) for _ in range(5)] == expected
    for _ in range(4):
        press(browser, "Tab", 9, 8)
    press(browser, "ArrowDown", 40)
    assert browser.run("return document.activeElement.id;") == "lines"
    press(browser, "Tab", 9, 8)
    browser.devtools("Input.insertText", text="\nwhere is my parcel")
    assert [tab(browser), tab(browser)] == ["lines", "submit"]
    press(browser, "Enter", 13)
    wait(browser, "document.querySelector('.several')")
    while tab(browser) != "summary":
        pass
    press(browser, "Enter", 13)
    wait(browser, "document.querySelector('.bars')")
    assert browser.console() == []


@pytest.mark.slow
def test_every_control_has_a_name_for_screen_readers(browser: Browser, address: str) -> None:
    open_page(browser, address)
    ask(browser, "hello")
    nodes = browser.devtools("Accessibility.getFullAXTree")["nodes"]
    found = {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and "role" in node
    }
    assert {
        ("heading", "tiny"),
        ("textbox", "Text"),
        ("radio", "One text"),
        ("radio", "A text on each line"),
        ("button", "Classify"),
        ("region", "Answer"),
    } <= found
    assert "status" in {role for role, _ in found}
    for role, name in found:
        if role in ("textbox", "radio", "button", "region", "form", "link"):
            assert name, role


@pytest.mark.slow
def test_the_words_of_an_answer_are_shown_and_can_be_clicked_away(
    browser: Browser, address: str
) -> None:
    open_page(browser, address)
    # The emoji is one code point and two units of JavaScript.
    text = "\N{PACKAGE} where is my parcel?"
    ask(browser, text)
    browser.run("document.querySelector('.why button').click();")
    wait(browser, "document.querySelector('.word')")
    assert "".join(text_of(browser, ".words")) == text
    assert {"where", "is", "my", "parcel", "?"} <= set(text_of(browser, ".word"))
    names = browser.run(
        "return [...document.querySelectorAll('.word')].map((word) => word.ariaLabel);"
    )
    assert all("speaks" in name or "changes nothing" in name for name in names)
    assert any(
        line.startswith(("For it", "Against it", "No word"))
        for line in text_of(browser, ".why .remark")
    )
    # Words are removed by keyboard, too.
    browser.run("[...document.querySelectorAll('.word')].at(-2).focus();")
    press(browser, "Enter", 13)
    wait(browser, "document.querySelector('.why [role=status]').textContent")
    (removed,) = text_of(browser, '.word[aria-pressed="true"]')
    assert removed == "parcel"
    answer = classify(address, {"input": text.replace("parcel", " ")})
    (item,) = answer["data"]
    expected = f"Without 1 word: {item['label']}, {item['score']:.3f}."
    assert text_of(browser, ".why [role=status]") == [expected]
    assert browser.console() == []


@pytest.mark.slow
def test_the_policy_stops_markup_and_foreign_scripts(browser: Browser, address: str) -> None:
    open_page(browser, address)
    assert (
        browser.run(
            "try { document.body.innerHTML = '<p>x</p>'; return 'made'; }"
            "catch (error) { return error.name; }"
        )
        == "TypeError"
    )
    browser.run(
        "const script = document.createElement('script'); script.append('window.ran = true');"
        "try { document.body.append(script); } catch {}"
    )
    assert not browser.run("return window.ran;")
    assert browser.run("return fetch('http://127.0.0.2:9/').catch((error) => error.name);") == (
        "TypeError"
    )
    assert "Content Security Policy" in "".join(browser.console())


# Answers that the tiny model cannot give; they replace the service's.
LIMITS = {"body_bytes": 1 << 20, "texts": 256, "characters": 9, "windows": 9, "timeout_ms": 10_000}
INFO: dict[str, Any] = {
    "name": "stand_in",
    "version": "0123456789ab",
    "created_at": "2026-11-24T08:36:58+00:00",
    "task": "single_label",
    "precision": "int8",
    "text_columns": ["text"],
    "max_length": 128,
    "long_text": "truncate",
    "thresholds": {},
    "abstain_threshold": None,
    "limits": LIMITS,
}


def labels_of(number: int) -> list[str]:
    return [f"a_label_with_a_long_name_number_{place:03}" for place in range(number)]


def answer_of(names: list[str], /, **fields: Any) -> dict[str, Any]:
    """An answer whose first label is the most probable one."""
    probs = (0.6 * 0.5 ** np.arange(len(names))).round(6).tolist()
    item = {"index": 0, "label": names[0], "score": probs[0], "probs": probs, **fields}
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return {"model": "stand_in:0123456789ab", "data": [item], "usage": usage}


def case(number: int, given: dict[str, Any], **fields: Any) -> tuple[Any, Any]:
    labels = labels_of(number)
    return {**INFO, "labels": labels, **fields}, answer_of(labels, **given)


CASES = {
    "seventy_seven": case(77, {"truncated": True, "abstained": True}, abstain_threshold=0.7),
    "thousand": case(1000, {"truncated": False}),
    "several": case(
        12,
        {"labels": labels_of(2), "truncated": False},
        task="multi_label",
        thresholds=dict.fromkeys(labels_of(12), 0.25),
    ),
    "none": case(
        12,
        {"labels": [], "truncated": False},
        task="multi_label",
        thresholds=dict.fromkeys(labels_of(12), 0.7),
    ),
    "positive": case(
        2, {"label": labels_of(2)[1], "score": 0.3}, thresholds={labels_of(2)[1]: 0.25}
    ),
    "pairs": case(3, {"windows": 3}, text_columns=["premise", "hypothesis"], long_text="window"),
}


@contextmanager
def answering(browser: Browser, info: Any, *answers: Any) -> Iterator[None]:
    """Pages opened meanwhile get `info` and then `answers` in turn; the last one stays.

    An answer is a body, a list of status, headers and body, or None for a network that is down.
    """
    source = f"""
      window.sent = [];
      const answers = {json.dumps(answers)};
      window.fetch = async (path, options) => {{
        let answer = {json.dumps(info)};
        if (path !== "info") {{
          sent.push(JSON.parse(options.body));
          answer = answers.length > 1 ? answers.shift() : answers[0];
        }}
        if (answer === null) throw new TypeError("Failed to fetch");
        const [status, headers, body] = Array.isArray(answer) ? answer : [200, {{}}, answer];
        return new Response(typeof body === "string" ? body : JSON.stringify(body), {{
          status, headers: {{"Server-Timing": "tokenize;dur=0.11, queue;dur=1.50", ...headers}} }});
      }};"""
    added = browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=source)
    try:
        yield
    finally:
        browser.devtools("Page.removeScriptToEvaluateOnNewDocument", **added)


def refused(status: int, message: str = "it says why", **headers: str) -> list[Any]:
    error = {"message": message, "type": "x", "param": None, "code": status}
    return [status, {"X-Request-Id": "an-id", **headers}, {"error": error}]


BUSY = "the server has more work than it can do in time: try again in 7 s"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refused(400), "It says why (400, request an-id)."),
        (refused(413), "This is more than the 1,048,576 bytes that the service takes at once: "),
        (
            refused(422, "text_pair[2] is empty"),
            "The service refuses this: second text 3 is empty.",
        ),
        (refused(429, BUSY, **{"Retry-After": "7"}), f"{BUSY.capitalize()}."),
        ([429, {"Retry-After": "9"}, "<h1>Slow down</h1>"], ": try again in 9 s."),
        ([429, {}, "<h1>Slow down</h1>"], ": try again in a moment."),
        (refused(500), "It says why (500, request an-id)."),
        ([502, {}, "<h1>Bad gateway</h1>"], "The service did not answer (502)."),
        (refused(503), "The service is starting or shutting down: try again in a moment."),
        (refused(504), "The answer was not ready by the deadline: try again, or send less text."),
        (None, "The service cannot be reached: check the connection, and that it still runs."),
        ([200, {}, "<h1>Log in</h1>"], "What answered is not the service: is this its address?"),
        ({**CASES["pairs"][1], "model": "other:1"}, "Another model answered than the one "),
    ],
)
def test_every_fault_is_shown_as_a_sentence(
    browser: Browser, address: str, answer: Any, message: str
) -> None:
    info, right = case(3, {"truncated": False})
    with answering(browser, info, right, answer, right):
        open_page(browser, address)
        ask(browser, "a")
        assert len(bars(browser)) == 3
        ask(browser, "a")
        (shown,) = text_of(browser, "#error")
        assert message in shown
        assert shown[-1] in ".?" and shown[:-1].count(".") == 0
        # The answer to the previous request must not appear.
        assert bars(browser) == []
        ask(browser, "a")
        assert text_of(browser, "#error") == []
        assert len(bars(browser)) == 3
    assert browser.console() == []


NEVER = """
  window.asked = 0;
  window.fetch = (path, {signal}) => new Promise((_, reject) => {
    asked += 1;
    signal.addEventListener("abort", () => reject(new DOMException("left", "AbortError")));
  });"""


@pytest.mark.slow
def test_only_the_last_request_counts_and_none_waits_for_ever(
    browser: Browser, address: str
) -> None:
    info, right = case(3, {"truncated": False})
    with answering(browser, info, right):
        open_page(browser, address)
        browser.run(
            "const real = window.fetch; let release; window.done = false;"
            "const released = new Promise((resolve) => { release = resolve; });"
            "window.release = () => { release(); };"
            "window.fetch = async (...asked) => { window.fetch = real; await released;"
            " const answer = await real(...asked); setTimeout(() => { window.done = true; }, 50);"
            " return answer; };"
        )
        type_in(browser, "text", "first")
        click(browser, "submit")
        assert text_of(browser, "#submit") == ["Classifying…"]
        ask(browser, "second")
        assert text_of(browser, ".asked") == ["second"]
        browser.run("window.release();")
        wait(browser, "window.done")
        assert text_of(browser, ".asked") == ["second"]
        assert text_of(browser, "#error") == []
        browser.run(f"{NEVER} const later = setTimeout; window.setTimeout = (f) => later(f, 10);")
        ask(browser, "third")
        assert text_of(browser, "#error") == ["The service did not answer within 20 s."]
    assert browser.console() == []


@pytest.mark.slow
def test_a_replaced_model_is_described_anew(browser: Browser, address: str) -> None:
    """Its probabilities come in the order of its own labels."""
    info, right = case(2, {"truncated": False})
    with answering(browser, info, right):
        open_page(browser, address)
        other = {**info, "version": "ba9876543210", "labels": ["new", "newer"]}
        answer = {**right, "model": "stand_in:ba9876543210"}
        answer["data"] = [{**right["data"][0], "label": "new"}]
        browser.run(
            "window.fetch = async (path) => new Response(JSON.stringify("
            f"path === 'info' ? {json.dumps(other)} : {json.dumps(answer)}));"
        )
        ask(browser, "a")
        assert [label for label, _ in bars(browser)] == ["new", "newer"]
        assert "ba9876543210" in text_of(browser, "#version")[0]


@pytest.mark.slow
def test_the_command_for_a_long_text_reads_standard_input(browser: Browser, address: str) -> None:
    """Linux accepts no argument of more than 131,072 bytes.

    The text is plain but for its beginning: a browser needs a minute for a long one of rare signs.
    """
    text = AWKWARD + "plain " * 25_000
    info, right = case(3, {"truncated": True})
    with answering(browser, info, right):
        open_page(browser, address)
        ask(browser, text)
        (command,) = text_of(browser, "#curl")
    assert len(command) > 131_072
    done = subprocess.run(
        ["bash", "-s"], input=f"curl() {{ cat; }}\n{command}\n", capture_output=True, text=True
    )
    assert json.loads(done.stdout) == {"input": text}


@pytest.mark.slow
def test_the_page_asks_for_a_key_when_it_becomes_necessary(browser: Browser, address: str) -> None:
    info, right = case(3, {"truncated": False})
    with answering(browser, info, refused(401), right):
        open_page(browser, address)
        ask(browser, "a")
        assert "Type in an API key" in text_of(browser, "#key-error")[0]
        assert browser.run("return document.activeElement.id;") == "key"
        assert "Bearer $KEY" in text_of(browser, "#curl")[0]


@pytest.mark.slow
def test_an_unavailable_service_can_be_asked_again(browser: Browser, address: str) -> None:
    with answering(browser, refused(503)):
        open_page(browser, address, "trouble")
        assert "starting" in text_of(browser, "#trouble-said")[0]
        browser.run(
            f"window.fetch = async () => new Response({json.dumps(json.dumps(CASES['pairs'][0]))});"
        )
        click(browser, "again")
        wait(browser, "!document.getElementById('model').hidden")
        assert text_of(browser, "#trouble") == []


@pytest.mark.slow
def test_the_first_of_many_labels_are_shown_and_the_others_on_request(
    browser: Browser, address: str
) -> None:
    with answering(browser, *CASES["thousand"]):
        open_page(browser, address)
        assert len(text_of(browser, ".names li")) == 40
        ask(browser, "a")
        assert [label for label, _ in bars(browser)] == labels_of(8)
        assert text_of(browser, "#results summary") == ["992 more labels"]
        browser.run("document.querySelector('#results summary').click();")
        wait(browser, "document.querySelectorAll('.bars > li').length === 1000")
        assert [label for label, _ in bars(browser)] == labels_of(1000)
        assert text_of(browser, ".bars .p")[-1] == "0.000"


@pytest.mark.slow
def test_thresholds_and_abstention_are_shown(browser: Browser, address: str) -> None:
    ticks = (
        "return [...document.querySelectorAll('.tick')]"
        ".map((tick) => Number(tick.style.getPropertyValue('--at')));"
    )
    first, second = labels_of(2)
    with answering(browser, *CASES["seventy_seven"]):
        open_page(browser, address)
        ask(browser, "a")
        assert text_of(browser, ".warning") == [
            "The model abstains: 0.600 is below 0.700.",
            "Only the first 128 tokens were read.",
        ]
        assert browser.run(ticks) == [0.7]
        assert "The model abstains." in text_of(browser, "#status")[0]
    with answering(browser, *CASES["several"]):
        open_page(browser, address)
        ask(browser, "a")
        assert text_of(browser, ".outcome bdi") == [first, second]
        assert text_of(browser, ".given > .label") == [first, second]
        assert browser.run(ticks) == [0.25] * 8
        assert text_of(browser, ".limit")[0] == "≥ 0.250"
    with answering(browser, *CASES["none"]):
        open_page(browser, address)
        ask(browser, "a")
        assert text_of(browser, ".outcome") == ["No label"]
        assert text_of(browser, ".given") == []
    with answering(browser, *CASES["positive"]):
        open_page(browser, address)
        ask(browser, "a")
        # A threshold chose the less probable label: it comes first, and only it has a mark.
        assert [label for label, _ in bars(browser)] == [second, first]
        assert browser.run(ticks) == [0.25]
    assert browser.console() == []


@pytest.mark.slow
def test_pairs_have_two_fields(browser: Browser, address: str) -> None:
    with answering(browser, *CASES["pairs"]):
        open_page(browser, address)
        labels = text_of(browser, ".field > label")
        assert labels == ["First text (premise)", "Second text (hypothesis)"]
        ask(browser, "one")
        assert text_of(browser, "#error") == ["Type the second text, too."]
        type_in(browser, "pair", "other")
        ask(browser, "one")
        assert text_of(browser, ".asked") == ["one", "other"]
        assert text_of(browser, ".remark") == ["Read in 3 windows of 128 tokens."]
        click(browser, "lines")
        type_in(browser, "pair", "other\n\nlast")
        ask(browser, "one\n\n")
        assert text_of(browser, "#error") == ["Type the first text on line 3, too."]
        type_in(browser, "pair", "other\n\n")
        ask(browser, "one\n\n")
        assert browser.run("return sent;") == [
            {"input": "one", "text_pair": "other"},
            {"input": ["one"], "text_pair": ["other"]},
        ]
    assert browser.console() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_the_page_fits_large_and_small_screens_in_light_and_dark(
    browser: Browser, address: str, name: str, tmp_path: Path
) -> None:
    with answering(browser, *CASES[name]):
        for width in (1280, 390):
            darkness = []
            for scheme in ("light", "dark"):
                browser.show(width, scheme)
                open_page(browser, address)
                if name == "pairs":
                    type_in(browser, "pair", "x" * 300)
                ask(browser, "x" * 300)
                assert bars(browser)
                found, window = browser.run(
                    "return [document.documentElement.scrollWidth, window.innerWidth];"
                )
                assert found <= window == width
                picture = tmp_path / f"{width}-{scheme}.png"
                browser.screenshot(picture)
                with Image.open(picture) as image:
                    darkness.append(1 - float(np.asarray(image.convert("L")).mean()) / 255)
            assert darkness[0] < 0.2 < 0.8 < darkness[1]
    assert browser.console() == []


@pytest.mark.slow
def test_a_real_server_serves_the_page_with_tracing(tiny_package: Path) -> None:
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_UI": "1",
        "WHETSTONE_TRACING_URL": "http://127.0.0.1:9/v1/traces",
    }
    with serving(SERVICE, environment) as served:
        status, content = get(served, "/ui")
        assert (status, content.encode()) == (200, page()[0])
        # A second policy would keep the page's script from running.
        with urllib.request.urlopen(f"{served}/ui", timeout=30) as answer:
            policies = answer.headers.get_all("content-security-policy")
        assert policies == [dict(page()[1])[b"content-security-policy"].decode()]
