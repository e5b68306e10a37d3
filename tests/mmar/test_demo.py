"""The demo: the generator of pictures, the fields, the server without a browser, and the page in a real one."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import GRID, SETTINGS, SIDE, picture, pipeline, same
from tiny_tokenizers import vq

from mmar.demo.orders import DrawingOrder, drawing_order
from mmar.demo.unfinished import DARK, LIGHT, known_tokens, unfinished_picture
from mmar.generation.settings import ImageGenerationConfig
from mmar.picture_codec import PictureCodec
from mmar.pipeline import MMARPipeline

for needed in ("starlette", "uvicorn"):
    pytest.importorskip(needed, reason=f"needs {needed}: pip install 'diffparam[demo]'")

from mmar.cli import main  # noqa: E402
from mmar.demo import endpoints  # noqa: E402
from mmar.demo.app import address, listen  # noqa: E402
from mmar.demo.drawing import Step, draw_steps  # noqa: E402
from mmar.demo.options import page_options  # noqa: E402
from mmar.demo.server import LOCAL, PAGE, DemoServer, build  # noqa: E402

CAPTION, QUESTION = "a red square", "what colour is it?"
PATIENCE = 120.0
"""Seconds until something that should come soon counts as missing; a limit, not a pause."""


@pytest.fixture(scope="module")
def pipe() -> MMARPipeline:
    return pipeline()


def order(pipe: MMARPipeline, **fields: str) -> DrawingOrder:
    return drawing_order({"caption": CAPTION, "seed": "7", **fields}, pipe.settings, pipe.model.config)


def codec_of(pipe: MMARPipeline) -> PictureCodec:
    return PictureCodec(pipe.processor.image_processor, pipe.image_tokenizer, pipe.model.config.has_codes)


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


class Gated(MMARPipeline):
    """Goes on to the next step when it is let or told to stop; counts the steps that it has begun to report."""

    def __init__(self, pipe: MMARPipeline) -> None:
        super().__init__(
            pipe.model, pipe.processor, pipe.image_tokenizer, settings=pipe.settings, compute_dtype=pipe.compute_dtype
        )
        self.gate, self.stop, self.reported = threading.Semaphore(0), threading.Event(), 0

    def draw(self, *args: Any, on_step: Any, **options: Any) -> Any:
        def gated(*step: Any) -> None:
            wait_for(lambda: self.gate.acquire(blocking=False) or self.stop.is_set())
            self.reported += 1
            on_step(*step)

        return super().draw(*args, on_step=gated, **options)


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


@pytest.fixture
def gated(pipe: MMARPipeline, monkeypatch: pytest.MonkeyPatch) -> Gated:
    """Hears of a stop, the server's too."""
    gated = Gated(pipe)

    def steps(pipeline: MMARPipeline, order: DrawingOrder, stop: threading.Event) -> Iterator[Step]:
        gated.stop = stop
        return draw_steps(pipeline, order, stop)

    monkeypatch.setattr(endpoints, "draw_steps", steps)
    return gated


# -- an unfinished picture -------------------------------------------------------------------------------------------------


def test_unknown_tokens_are_a_pattern_and_known_ones_themselves(pipe: MMARPipeline) -> None:
    image = picture(1)
    tokens = pipe.encode([image])[0]
    known = torch.rand(GRID, GRID, generator=torch.Generator().manual_seed(0)) < 0.5
    shown = np.asarray(unfinished_picture(codec_of(pipe), tokens * known.view(-1, 1)))
    cells = known.repeat_interleave(SIDE // GRID, 0).repeat_interleave(SIDE // GRID, 1).numpy()
    assert (shown[cells] == np.asarray(image)[cells]).all()
    assert {tuple(pixel) for pixel in shown[~cells].tolist()} == {LIGHT, DARK}
    assert torch.equal(known_tokens(tokens * known.view(-1, 1)), known.flatten())


def test_codes_are_known_unless_zero() -> None:
    pipe = pipeline(vq(), settings=ImageGenerationConfig(ar_steps=3))
    steps = list(draw_steps(pipe, drawing_order({"seed": "1"}, pipe.settings, pipe.model.config)))
    assert same([steps[-1].picture], pipe.draw("", seed=1))
    assert [known_tokens(torch.tensor([0, 3, 0])).tolist(), len(steps)] == [[False, True, False], 3]


# -- the generator of pictures ---------------------------------------------------------------------------------------------


def pattern_share(step: Step) -> float:
    colours = step.picture.getcolors()
    return sum(count for count, colour in colours if colour in (LIGHT, DARK)) / SIDE**2


def test_steps_are_those_of_draw(pipe: MMARPipeline) -> None:
    seen: list[torch.Tensor] = []
    wanted = pipe.draw(CAPTION, seed=7, on_step=lambda done, total, tokens: seen.append(tokens[0]))
    steps = list(draw_steps(pipe, order(pipe)))
    assert [(step.done, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert same([steps[-1].picture], wanted)
    assert same([step.picture for step in steps[:-1]], [unfinished_picture(codec_of(pipe), now) for now in seen[:-1]])
    shares = [pattern_share(step) for step in steps]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.5
    assert not same([steps[-1].picture], [list(draw_steps(pipe, order(pipe, seed="8")))[-1].picture], 5)  # the control


def test_a_picture_comes_before_the_next_step_is_drawn(pipe: MMARPipeline, gated: Gated) -> None:
    steps = draw_steps(gated, order(pipe))
    for done in (1, 2, 3, 4):
        gated.gate.release()
        assert next(steps).done == gated.reported == done
    assert list(steps) == []


def test_closing_stops_at_the_end_of_the_step(pipe: MMARPipeline, gated: Gated) -> None:
    before = set(threading.enumerate())
    steps = draw_steps(gated, order(pipe), gated.stop)
    gated.gate.release()
    next(steps)
    steps.close()
    wait_for(lambda: set(threading.enumerate()) <= before)
    assert gated.reported == 2  # of four: the step that is shown and the one that was being drawn


def test_a_stop_from_elsewhere_ends_the_steps(pipe: MMARPipeline, gated: Gated) -> None:
    steps = draw_steps(gated, order(pipe), gated.stop)
    gated.gate.release()
    next(steps)
    gated.stop.set()
    assert list(steps) == []


def test_an_error_of_drawing_is_raised_where_steps_are_read(pipe: MMARPipeline) -> None:
    bad = replace(order(pipe), settings=ImageGenerationConfig(top_k=3))
    with pytest.raises(ValueError, match="top_k"):
        next(draw_steps(pipe, bad))


# -- fields ----------------------------------------------------------------------------------------------------------------


def test_fields_replace_settings(pipe: MMARPipeline) -> None:
    full = order(pipe, guidance=" 3.5 ", ar_steps="", head_steps="9", solver="heun")
    assert full == DrawingOrder(CAPTION, replace(SETTINGS, guidance_scale=3.5, ar_steps=None, head_steps=9, solver="heun"), 7)
    assert order(pipe) == DrawingOrder(CAPTION, SETTINGS, 7)
    seeds = {order(pipe, seed="").seed for _ in range(8)}
    assert len(seeds) > 1  # equal by chance once in 2**224


def test_what_belongs_to_a_replaced_setting_goes_with_it(pipe: MMARPipeline) -> None:
    noisy = ImageGenerationConfig(solver="ddim", eta=0.5, head_steps=8, head_steps_end=4)
    fields = {"solver": "ddim", "head_steps": "8"}
    assert drawing_order(fields, noisy, pipe.model.config).settings == noisy
    other = drawing_order({"solver": "heun", "head_steps": "6"}, noisy, pipe.model.config).settings
    assert (other.eta, other.head_steps_end) == (0, None)


def test_the_page_offers_what_the_model_has(pipe: MMARPipeline) -> None:
    masked = page_options(pipe)
    assert masked["fields"] == {"guidance": "2", "seed": "", "ar_steps": "4", "head_steps": "3", "solver": "ddpm"}
    assert masked["draws"]
    assert set(page_options(pipeline(vq()))["fields"]) == {"guidance", "seed", "ar_steps"}
    assert drawing_order(masked["fields"], pipe.settings, pipe.model.config).settings == SETTINGS


# -- the server, without a browser -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(pipe: MMARPipeline) -> Iterator[str]:
    """The page on a free port, in a thread of this process."""
    with listen("127.0.0.1", 0) as listener:
        running = DemoServer(build(pipe))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address(listener)
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def site(pipe: MMARPipeline) -> Iterator[str]:
    with served(pipe) as url:
        yield url


@contextlib.contextmanager
def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        yield connection.getresponse()
    finally:
        connection.close()


def told(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    with ask(url, method, path, body, **headers) as response:
        return response.status, json.loads(response.read())


def test_a_drawing_is_a_line_per_step(site: str, pipe: MMARPipeline) -> None:
    with ask(site, "POST", "/draw", {"caption": CAPTION, "seed": "7"}) as response:
        lines = [json.loads(line) for line in response]
    assert lines[0] == {"seed": 7}
    assert [(line["done"], line["total"]) for line in lines[1:]] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len({line["picture"] for line in lines[1:]}) == 4


def test_lines_are_sent_as_they_come_and_a_lost_reader_ends_the_drawing(gated: Gated) -> None:
    with served(gated) as url:
        with ask(url, "POST", "/draw", {"caption": CAPTION}) as response:
            response.readline()
            gated.gate.release()
            assert json.loads(response.readline())["done"] == 1
            assert gated.reported == 1
        wait_for(gated.stop.is_set)
        assert told(url, "POST", "/answer?question=a", png(picture()))[0] == 200  # it is not waited for
        wait_for(lambda: gated.reported == 2)


def test_a_server_that_ends_stops_its_drawing(gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    with served(gated) as url, ask(url, "POST", "/draw", {"caption": CAPTION}) as response:
        response.readline()
        gated.gate.release()
        assert json.loads(response.readline())["done"] == 1
    assert gated.stop.is_set()
    assert caplog.records == []


def test_an_answer_is_that_of_the_pipeline(site: str, pipe: MMARPipeline) -> None:
    image = picture(3, 40, 30)
    wanted = pipe.answer(image, QUESTION)
    assert told(site, "POST", f"/answer?question={quote(QUESTION)}", png(image)) == (200, {"answer": wanted})


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/draw", {"guidance": "much"}, "guidance must be a number such as 2.5, got 'much'"),
        ("/draw", {"guidance": ""}, "guidance must be a number such as 2.5, got nothing"),
        ("/draw", {"guidance": "-1"}, "guidance_scale must be a finite number of at least 0, got -1.0"),
        ("/draw", {"guidance": "nan"}, "guidance_scale must be a finite number"),
        ("/draw", {"ar_steps": "0"}, "autoregressive steps must be a whole number from 1 to 10000, got '0'"),
        ("/draw", {"ar_steps": "²"}, "autoregressive steps must be a whole number"),
        ("/draw", {"head_steps": ""}, "head steps must be a whole number from 1 to 10000, got nothing"),
        ("/draw", {"head_steps": "2.5"}, "head steps must be a whole number"),
        ("/draw", {"solver": "euler"}, "solver must be one of ddpm, ddim, dpm_solver, heun, got 'euler'"),
        ("/draw", {"seed": "-3"}, "seed must be a whole number from 0 to 4294967295, got '-3'"),
        ("/draw", {"caption": "a" * 2001}, "caption must have at most 2000 characters, got 2001"),
        ("/draw", {"caption": 3}, "fields must be an object of texts"),
        ("/draw", {"temperature": "1"}, "fields must be among caption"),
        ("/draw", b"caption", "fields must be JSON"),
        ("/answer?question=a", b"", "image must be chosen before a question is asked, got none"),
        ("/answer?question=a", b"no picture", "image must be a picture, as PNG or JPEG"),
        ("/answer?question=a", png(picture(0, 64, 64))[:900], "image must be a picture, as PNG or JPEG"),
        ("/answer?question=%20", png(picture()), "question must have some words, got none"),
        ("/answer", png(picture()), "question must have some words, got none"),
    ],
)
def test_bad_input_is_told(site: str, path: str, body: Any, words: str) -> None:
    status, content = told(site, "POST", path, body)
    assert status == 400
    assert content["error"].startswith(words)
    assert "Traceback" not in content["error"]
    assert "\n" not in content["error"]


def test_a_failure_while_drawing_is_told_in_the_last_line(
    gated: Gated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gated, "draw", broken)
    with served(gated) as url, ask(url, "POST", "/draw", {}) as response:
        lines = [json.loads(line) for line in response]
    assert lines[-1] == {"error": "this failed: RuntimeError: out of memory"}
    assert "out of memory" in caplog.text


def test_other_sites_have_no_way_in(site: str) -> None:
    assert told(site, "POST", "/draw", {}, Origin="https://example.org")[0] == 403
    with ask(site, "GET", "/", Host="example.org") as response:
        assert response.status == 400
    with ask(site, "POST", "/draw", {}, Origin=site) as response:  # the control
        assert response.status == 200


def test_the_page_names_no_other_machine(site: str) -> None:
    files = sorted(PAGE.iterdir())
    assert {"index.html", "page.css", "page.js"} <= {file.name for file in files}
    for file in files:
        with ask(site, "GET", f"/{file.name}") as response:
            assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert response.read() == file.read_bytes()
        assert "//" not in file.read_text().replace("///", "")


# -- the command -----------------------------------------------------------------------------------------------------------


def test_it_listens_to_this_machine_alone() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    assert LOCAL == ("127.0.0.1", "localhost")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "a model must be an existing folder"),
        (["--model", "nowhere", "--port", "70000"], "must be at most 65535"),
        (["--model", "nowhere", "--port", "http"], "must be a whole number"),
        (["--model", "nowhere", "--share", "yes"], "invalid choice: 'yes'"),
        ([], "--model"),
    ],
)
def test_bad_commands_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *words]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


def test_a_port_in_use_is_told_before_the_weights_are_read(
    pipe: MMARPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", "--model", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port must be a free port, got {port}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(pipe: MMARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "mmar", "demo", "--model", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            assert told(url, "GET", "/options")[1] == page_options(pipe)
        finally:
            process.send_signal(2)
        assert "Traceback" not in process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0


# -- the page in a browser -------------------------------------------------------------------------------------------------

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # no network
    "--window-size=1100,1000",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'diffparam[dev]'")
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page as people use it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.until("document.body.dataset.ready")

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element("css selector", f"#{name}, [name={name}]")

    def until(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true."""
        return wait_for(lambda: self.browser.execute_script(f"return {condition}"))

    def write(self, name: str, text: str) -> None:
        self[name].clear()
        self[name].send_keys(text)

    def draw(self, **fields: str) -> None:
        for name, text in fields.items():
            self.write(name, text)
        self["start"].click()
        self.until("!document.getElementById('start').disabled")

    def ask(self, question: str) -> None:
        self.write("question", question)
        self["send"].click()
        self.until("!document.getElementById('send').disabled")

    def look_back(self, step: int) -> str:
        """The picture after a step, as the address of its PNG."""
        script = "const s = document.getElementById('step'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, step)
        return self["picture"].get_attribute("src")


@pytest.fixture
def page(browser: Any, site: str) -> Page:
    return Page(browser, site)


def decoded(address: str) -> Image.Image:
    from base64 import b64decode

    return Image.open(BytesIO(b64decode(address.partition(",")[2])))


def test_the_page_draws_step_by_step(page: Page, pipe: MMARPipeline) -> None:
    page.draw(caption=CAPTION, seed="7", ar_steps="8", guidance="3")
    assert page["status"].text == "Step 8 of 8 · 100 % · seed 7"
    pictures = [decoded(page.look_back(step)) for step in range(1, 9)]
    settings = replace(SETTINGS, ar_steps=8, guidance_scale=3.0)
    wanted = [step.picture for step in draw_steps(pipe, DrawingOrder(CAPTION, settings, 7))]
    assert same(pictures, wanted)
    assert len({image.tobytes() for image in pictures}) == 8


def test_the_page_answers_questions_about_an_image(page: Page, pipe: MMARPipeline, tmp_path: Path) -> None:
    image, questions = picture(3, 40, 30), [QUESTION, "is it round?"]
    image.save(tmp_path / "image.png")
    page["image"].send_keys(str(tmp_path / "image.png"))
    for question in questions:
        page.ask(question)
    texts = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
    assert page.browser.execute_script(texts, "#history .question") == questions
    assert page.browser.execute_script(texts, "#history .answer") == pipe.answer(image, questions)


def test_the_page_asks_about_what_it_drew(page: Page, pipe: MMARPipeline, tmp_path: Path) -> None:
    page.draw(caption=CAPTION, seed="7", ar_steps="16")
    page["take"].click()
    page.until("!document.getElementById('preview').hidden")
    for question in (QUESTION, "is it round?"):
        page.ask(question)
    drawn = decoded(page["picture"].get_attribute("src"))
    answers = page.browser.execute_script("return [...document.querySelectorAll('.answer')].map(one => one.textContent)")
    assert answers == pipe.answer(drawn, [QUESTION, "is it round?"])
    page.look_back(9)
    page.browser.save_screenshot(str(tmp_path / "page.png"))
    assert len(Image.open(tmp_path / "page.png").convert("RGB").getcolors(2**24)) > 50  # blank pages have one colour


def test_the_page_tells_what_is_wrong(page: Page) -> None:
    page.ask(QUESTION)
    assert page["ask-error"].text.startswith("image must be chosen before a question is asked")
    page.draw(guidance="much")
    assert page["draw-error"].text == "guidance must be a number such as 2.5, got 'much'"
    page.draw(guidance="2")
    assert not page["draw-error"].is_displayed()
    assert page["picture"].is_displayed()


def test_stop_ends_a_drawing_and_keeps_what_is_there(browser: Any, gated: Gated) -> None:
    with served(gated) as url:
        page = Page(browser, url)
        page["start"].click()
        gated.gate.release()
        page.until("document.getElementById('status').textContent.startsWith('Step 1 of 4')")
        page["stop"].click()
        page.until("!document.getElementById('start').disabled")
        assert page["status"].text.endswith("stopped")
        assert page["picture"].is_displayed()
        wait_for(gated.stop.is_set)
        page.browser.get("about:blank")
    assert gated.reported <= 2  # of four


def test_the_page_asks_no_other_machine(page: Page, site: str) -> None:
    page.draw(caption=CAPTION)
    asked = page.browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert {urlsplit(one).netloc for one in asked if not one.startswith("data:")} == {urlsplit(site).netloc}
    assert {f"{site}/{name}" for name in ("page.css", "page.js", "options", "draw")} <= set(asked)
    refused = [entry for entry in page.browser.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert refused == []
