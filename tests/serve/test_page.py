"""The page in headless Chromium, with a real upload; the screenshots are kept in the folder of the test."""

import shutil

import pytest

from tests.helpers.videos import numbered_video

pytest.importorskip("fastapi", reason="needs the extra [serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, of the extra [test]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH")]

OVERFLOWING = """[...document.querySelectorAll("body, body *:not(#file)")].filter(
  e => e.getBoundingClientRect().right > innerWidth + 0.5 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth
).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser():
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


def test_upload_and_camera_at_every_width_and_scheme(browser, model, serve, tmp_path):
    from vivit_jax.serve.app import create_app

    names = "a run", "a run with a long name " + "x" * 60
    url = serve(create_app(dict.fromkeys(names, model)))
    clip = numbered_video(tmp_path / f"<img src=x onerror=alert(1)>{'y' * 60}.mp4", 50)
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, problems, urls = context.new_page(), [], []
        page.on("console", lambda message, problems=problems: problems.append(message.text))
        page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
        page.on("request", lambda request, urls=urls: urls.append(request.url))
        page.goto(url)
        if (width, scheme) == (390, "dark"):
            page.click("#camera")
            page.wait_for_timeout(1500)
            page.click("#stop")
        else:
            page.set_input_files("#file", clip)
            assert clip.name in page.inner_text("#name")
            page.click("#start")
        page.wait_for_selector("#models .card:nth-of-type(2) .ranked")
        page.wait_for_selector("#start:not([disabled])")
        assert page.locator("#models h2").all_inner_texts() == list(names)
        assert page.locator(".ranked").first.inner_text().count("%") == 5
        assert "<b>one</b>" in page.inner_text("#models")  # a label is text
        assert page.locator("#models img").first.evaluate("image => image.naturalWidth") == 12
        page.screenshot(path=tmp_path / f"page_{width}_{scheme}.png", full_page=True)
        assert page.evaluate(OVERFLOWING) == []
        assert problems == []
        assert [each for each in urls if not each.startswith((url, f"blob:{url}", "data:"))] == []
        context.close()


def test_refusal_is_shown(browser, model, serve, tmp_path):
    from vivit_jax.serve.app import create_app

    text = tmp_path / "text.mp4"
    text.write_text("no video")
    page = browser.new_page()
    page.goto(serve(create_app({"model": model})))
    page.set_input_files("#file", text)
    page.click("#start")
    page.wait_for_selector("#models .error")
    assert "not a video" in page.inner_text("#models .error")
    # A recording that is too large is not predicted, nor is the video before it.
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.evaluate("server.limits.max_mb = 1e-4")
    page.click("#camera")
    page.wait_for_timeout(500)
    page.click("#stop")
    page.wait_for_selector("#message:has-text('webm is larger than')")
    page.wait_for_timeout(200)
    assert not [url for url in requests if "api/predict" in url]
    assert page.inner_text("#name") == "text.mp4"
