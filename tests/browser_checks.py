"""JupyterLab as a reader meets it, in a real browser without a screen: `make browser-test`. Opt-in, a few minutes on two cores.

A copy of notebooks and pages is served from this machine to this machine, as `make lab` serves the repository. Screenshots stay in outputs/browser: look at them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "outputs" / "browser"
TREE = OUTPUT / "tree"
DOOR, INDEX, VIEWERS, EXPLORERS, GENERATE = "nbs/00_drpose.ipynb", "nbs/index.ipynb", "nbs/posttraining/05_viewers.ipynb", "nbs/posttraining/06_explorers.ipynb", "nbs/runs/generate.ipynb"
PATIENCE = 900_000  # milliseconds that all cells of a chapter may take on a machine with other work
SETTINGS = {  # no question about news, nothing written behind our back, and every cell in the page, also those that are not in sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False, "defaultViewers": {"markdown": "Markdown Preview"}},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


def find_browser() -> str:
    "Path of a Chromium; SystemExit with what to install where something is missing."
    if importlib.util.find_spec("playwright") is None:
        raise SystemExit("make browser-test drives a browser through playwright, which is not installed: pip install playwright")
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if shutil.which(name):
            return shutil.which(name)
    raise SystemExit("make browser-test needs Chromium, which is not installed: apt-get install chromium (Debian, Ubuntu), or another system's package of that name")


def copy_tree() -> None:
    "What a reader can open, without what runs have left in it."
    shutil.rmtree(OUTPUT, ignore_errors=True)
    shutil.copytree(ROOT / "nbs", TREE / "nbs", ignore=shutil.ignore_patterns("outputs", ".ipynb_checkpoints"))
    shutil.copytree(ROOT / "docs", TREE / "docs")
    for name in ("README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, TREE / name)


def take_a_photo(path: Path) -> None:
    "Somebody to upload: a person of the tiny world who waves, cut out."
    import torch
    from PIL import Image

    from drpose.people.bodies import load_body
    from drpose.people.clips import embedded_clips
    from drpose.pictures.cameras import ViewRig
    from drpose.pictures.dressed_people import draw_crowd, photograph

    body_model = load_body()
    views = photograph(body_model, embedded_clips()["wave"].poses[20:21], draw_crowd(body_model, [5]), ViewRig((0.0,)), 256).views
    picture = torch.cat([views.colors[0, 0], views.masks[0, 0][None]]).clamp(0, 1)
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy(), "RGBA").save(path)


@contextlib.contextmanager
def served():
    "The address of a JupyterLab with a state of its own, and its token."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    state, token = OUTPUT / "state", secrets.token_hex(16)
    for name, values in SETTINGS.items():
        path = state / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    folders = {"HOME": "home", "IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
               "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    for folder in folders.values():
        (state / folder).mkdir(parents=True, exist_ok=True)
    environment = os.environ | {name: str(state / folder) for name, folder in folders.items()} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", f"--config={ROOT / 'scripts' / 'lab_config.py'}", "--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}", "--allow-root", "--ServerApp.root_dir=.", f"--LabApp.default_url=/lab/tree/{DOOR}"]
    with open(OUTPUT / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=TREE, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api?token={token}", timeout=5)
                    break
                assert server.poll() is None, f"JupyterLab did not start, see {OUTPUT / 'server.log'}"
                time.sleep(0.2)
            yield address, token
        finally:
            server.terminate()
            server.wait(60)


def broken_pictures(page) -> list[str]:
    "Addresses of pictures that the page names and the browser cannot show."
    page.evaluate("Promise.all([...document.querySelectorAll('.jp-MainAreaWidget:not(.lm-mod-hidden) img')].map(i => i.complete ? 0 : new Promise(d => { i.onload = i.onerror = d })))")
    return page.evaluate("[...document.querySelectorAll('.jp-MainAreaWidget:not(.lm-mod-hidden) img')].filter(i => !i.naturalWidth && i.offsetParent).map(i => i.src.slice(0, 200))")


def count_pictures(page) -> int:
    return page.evaluate("[...document.querySelectorAll('.jp-MainAreaWidget:not(.lm-mod-hidden) img')].filter(i => i.naturalWidth).length")


def open_notebook(page, address: str, name: str, cells: int = 3) -> None:
    "Show a file and wait for it."
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length >= {cells}", timeout=180_000)
    page.wait_for_timeout(3000)


def run_all(page) -> int:
    "Run all cells, wait for the last; the number of the last execution. AssertionError if a cell failed."
    before = last_count(page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function("""before => { const all = [...document.querySelectorAll('.jp-CodeCell:not(.jp-mod-noContent)')].filter(c => c.querySelector('.cm-content')?.innerText.trim());
        const counts = all.map(c => c.querySelector('.jp-InputArea-prompt').innerText.match(/\\d+/)); return document.querySelector('[data-mime-type="application/vnd.jupyter.error"]') || counts.every(Boolean) && Math.min(...counts.map(Number)) > before }""", arg=before, timeout=PATIENCE, polling=1000)
    failed = page.evaluate("[...document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.error\"]')].map(e => e.innerText.slice(-300))")
    assert not failed, f"a cell failed: {failed[0]}"
    return last_count(page)


def last_count(page) -> int:
    return page.evaluate("Math.max(0, ...[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(p => Number((p.innerText.match(/\\d+/) || [0])[0])))")


def stays_as_stored(page, name: str) -> None:
    "The notebook that was just opened is not marked as changed, and saving it leaves each byte where it was. AssertionError otherwise."
    before = (TREE / name).read_bytes()
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=180_000)  # the kernel has said what it is
    page.wait_for_timeout(4000)
    assert not page.evaluate("!!document.querySelector('.lm-TabBar-tab.jp-mod-dirty')"), f"{name} is marked as changed by opening it"
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-MarkdownOutput").first.click()
    page.keyboard.press("Control+S")
    page.wait_for_timeout(4000)
    assert (TREE / name).read_bytes() == before, f"{name} is changed by opening and saving it"
    print(f"{name}: not marked as changed, and the same bytes when saved", flush=True)


def retype(page, cell_with: str, old: str, new: str) -> None:
    "Change a word in the cell that holds it, as somebody at a keyboard would."
    cell = page.locator(".jp-CodeCell", has_text=cell_with).first
    cell.scroll_into_view_if_needed()
    found = cell.locator(".cm-content").evaluate("(content, old) => { const text = (content.cmTile || content.cmView).view; const at = text.state.doc.toString().indexOf(old); if (at >= 0) { text.dispatch({selection: {anchor: at, head: at + old.length}}); text.focus(); } return at }", old)
    assert found >= 0, f"no cell says {old!r}"
    page.keyboard.type(new)


MESH = "(() => { const plot = document.querySelector('.jp-OutputArea-output .widget-box .js-plotly-plot'); return plot && plot.data && plot.data[0] && plot.data[0].y ? Array.from(plot.data[0].y).reduce((sum, value, index) => sum + value * (index % 97), 0) : null })()"
SCORE = "(() => { const head = [...document.querySelectorAll('h2')].find(h => h.innerText.startsWith('PoseScore')); return head ? head.innerText : null })()"
CAMERA = "document.querySelector('.jp-OutputArea-output .widget-box .js-plotly-plot')._fullLayout.scene._scene.getCamera().eye"


def move_a_slider(page) -> tuple[list[float], dict]:
    "Turn a joint with the keyboard, step by step: seconds until mesh and score had moved, and the camera before and after."
    page.locator(".widget-dropdown", has_text="start from").first.scroll_into_view_if_needed()  # as a reader would, before it is drawn
    page.wait_for_function(f"{MESH} !== null && {SCORE} !== null", timeout=300_000)
    plot = page.locator(".jp-OutputArea-output .widget-box .js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    page.wait_for_timeout(2000)
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 10, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1500)
    camera, seconds = page.evaluate(CAMERA), []
    handle = page.locator(".widget-slider", has_text="swing z").first.locator(".noUi-handle")
    handle.focus()
    for key in ("ArrowLeft", "ArrowRight") * 4:
        mesh, score, began = page.evaluate(MESH), page.evaluate(SCORE), time.perf_counter()
        page.keyboard.press(key)
        page.wait_for_function(f"was => {MESH} !== was[0] && {SCORE} !== was[1]", arg=[mesh, score], timeout=120_000, polling=20)
        seconds.append(time.perf_counter() - began)
        page.wait_for_timeout(1500)
    return seconds, {"before": camera, "after": page.evaluate(CAMERA)}


def use_the_viewers(page, address: str) -> None:
    "Run the chapter as stored, ask for live viewers, run it twice, and use them."
    open_notebook(page, address, VIEWERS)
    page.screenshot(path=OUTPUT / "2_viewers_as_stored.png")
    stays_as_stored(page, VIEWERS)
    retype(page, "LIVE = False", "False", "True")
    first = run_all(page)
    second = run_all(page)
    assert second > first, "all cells ran again in the same kernel"
    seconds, camera = move_a_slider(page)
    assert all(abs(camera["before"][axis] - camera["after"][axis]) < 1e-6 for axis in "xyz"), f"the camera moved by itself: {camera}"
    assert abs(camera["before"]["x"]) > 0.05, "dragging turned the body"
    drawn = page.locator("small", has_text="drawn in").first.inner_text()
    page.screenshot(path=OUTPUT / "3_pose_editor.png")
    page.set_viewport_size({"width": 1500, "height": 1500})
    for label, name in (("start from", "pose_editor"), ("benchmark", "before_after")):
        page.locator(".jp-OutputArea-output .widget-vbox", has_text=label).first.screenshot(path=OUTPUT / f"{name}.png")  # all of it, for docs/viewers
    page.set_viewport_size({"width": 1500, "height": 1000})
    for number, label in enumerate(("benchmark", "motion", "stop at the next checkpoint"), 4):
        spot = page.locator(".jp-OutputArea-output .widget-box", has_text=label).last
        spot.scroll_into_view_if_needed()
        page.wait_for_timeout(2000)
        page.screenshot(path=OUTPUT / f"{number}_{label.split()[0]}.png")
    field = page.locator(".widget-text", has_text="motion").first.locator("input")
    field.fill("no_such_motion.bvh")
    field.press("Enter")
    page.locator(".widget-hbox", has=field).get_by_role("button", name="open").click()
    page.get_by_text("no_such_motion.bvh: no such file", exact=False).first.wait_for(timeout=60_000)
    print(f"a key on a slider until mesh and score had moved: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f}; of it in the kernel, the last time: {drawn}")


def upload_a_photo(page) -> None:
    "Upload a photo, see a mesh, take the GLB; then name a file that is none."
    maker = page.locator(".jp-OutputArea-output .widget-vbox", has=page.get_by_role("button", name="make the person")).last
    maker.scroll_into_view_if_needed()
    page.wait_for_timeout(2000)
    with page.expect_file_chooser() as chooser:
        maker.get_by_role("button", name="upload a photo").click()
    chooser.value.set_files(OUTPUT / "photo.png")
    maker.locator("img").first.wait_for(timeout=60_000)  # the photo that came
    maker.locator(".widget-dropdown", has_text="texture").locator("select").select_option(label="colours at vertices")
    began = time.monotonic()
    maker.get_by_role("button", name="make the person").click()
    page.wait_for_selector(".widget-label >> text=/reading|drawing|carving/", timeout=60_000)
    maker.locator("a[download='person.glb']").wait_for(timeout=PATIENCE)
    seconds = time.monotonic() - began
    plot = maker.locator(".js-plotly-plot")
    plot.scroll_into_view_if_needed()
    page.wait_for_timeout(4000)
    corners = plot.evaluate("plot => plot.data[0].x.length")
    assert corners > 1000, f"the mesh has {corners} vertices"
    with page.expect_download() as taken:
        maker.locator("a[download='person.glb']").click()
    assert Path(taken.value.path()).read_bytes()[:4] == b"glTF", "what is downloaded is no GLB"
    page.set_viewport_size({"width": 1500, "height": 1500})
    maker.screenshot(path=OUTPUT / "8_photo_to_mesh.png")  # all of it
    page.set_viewport_size({"width": 1500, "height": 1000})
    field = maker.locator(".widget-text", has_text="or a file").locator("input")
    field.fill("no_such_photo.png")
    field.press("Enter")
    maker.get_by_role("button", name="make the person").click()
    maker.get_by_text("no_such_photo.png: no such file", exact=False).wait_for(timeout=60_000)
    print(f"a photo was uploaded and became a mesh of {corners} vertices in {seconds:.0f} s, and a GLB was downloaded", flush=True)


def leaf_through_pairs(page) -> None:
    "Move the filters of the explorer."
    explorer = page.locator(".jp-OutputArea-output .widget-vbox", has=page.locator(".widget-dropdown", has_text="worst first by")).last
    explorer.scroll_into_view_if_needed()
    page.wait_for_timeout(2000)
    image, words = explorer.locator("img").first, explorer.locator(".widget-html").first

    def options(label: str) -> list[str]:
        "ipywidgets writes a space in an option as one that does not break."
        texts = explorer.locator(".widget-dropdown", has_text=label).locator("option").all_inner_texts()
        return [text.replace("\xa0", " ") for text in texts]

    def choose(label: str, begin: str) -> int:
        "Another option, and the page that follows it; the number in its brackets, if there is one."
        was, texts = image.get_attribute("src"), options(label)
        (option,) = [text for text in texts if text.startswith(begin)]
        explorer.locator(".widget-dropdown", has_text=label).locator("select").select_option(index=texts.index(option))
        page.wait_for_function("([image, was]) => image.src !== was", arg=[image.element_handle(), was], timeout=60_000)
        return int(re.search(r"\((\d+)\)", option)[1]) if "(" in option else 0

    refused = choose("gates", "refused (")
    assert words.inner_text() == f"{refused} of 54 pairs" and 0 < refused < 54, words.inner_text()
    page.wait_for_timeout(1000)
    page.screenshot(path=OUTPUT / "9_refused_pairs.png")
    passing = choose("gates", "passes (")
    assert refused + passing == 54, (refused, passing)
    choose("worst first by", "overlap")
    handle = explorer.locator(".noUi-handle-lower").first
    handle.focus()
    while words.inner_text().startswith(f"{passing} of 54 pairs"):  # until the first who passes is left out
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1000)
    page.screenshot(path=OUTPUT / "9_pairs.png")
    print(f"the explorer's filters moved its page: {refused} refused, {passing} pass, {words.inner_text()}", flush=True)


def use_the_explorers(page, address: str) -> None:
    "Run the chapter with live viewers and use both."
    open_notebook(page, address, EXPLORERS)
    retype(page, "LIVE = False", "False", "True")
    run_all(page)
    upload_a_photo(page)
    leaf_through_pairs(page)


def change_a_job(page, address: str) -> None:
    "Run the job `generate`, change a parameter, and run all again in the same kernel."
    open_notebook(page, address, GENERATE)
    retype(page, "output_dir: str", "outputs/generate", "outputs/first")
    first = run_all(page)
    sheets = "[...document.querySelectorAll('.jp-OutputArea-output img')].map(i => i.src.length + i.src.slice(2000, 2200)).join()"
    before = page.evaluate(sheets)
    retype(page, "output_dir: str", "outputs/first", "outputs/second")
    retype(page, "output_dir: str", "seed: int = 0", "seed: int = 1")
    assert run_all(page) > first, "all cells ran again in the same kernel"
    assert page.evaluate(sheets) != before, "another seed draws other people"
    page.screenshot(path=OUTPUT / "10_generate.png")
    found = sorted(path.name for path in (TREE / "nbs" / "runs" / "outputs").iterdir())
    assert found == ["first", "second"], found
    print("generate ran, and again with another seed in the same kernel", flush=True)


def main() -> None:
    "All of it, in the order in which a reader would."
    browser_path = find_browser()
    from playwright.sync_api import sync_playwright

    copy_tree()
    take_a_photo(OUTPUT / "photo.png")
    began = time.monotonic()
    with served() as (address, token), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(300_000)
        page.goto(f"{address}/?token={token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=180_000)
        assert page.url.split("?")[0].endswith(f"/lab/tree/{DOOR}"), f"the door did not open, but {page.url}"
        page.wait_for_timeout(4000)
        page.screenshot(path=OUTPUT / "1_door.png")
        for name, least in ((DOOR, 3), (INDEX, 1), ("README.md", 1)):
            if name.endswith(".md"):
                page.goto(f"{address}/lab/tree/{name}?reset")
                page.wait_for_selector(".jp-MarkdownViewer img", state="attached", timeout=180_000)
                page.wait_for_timeout(3000)
            else:
                open_notebook(page, address, name)
                stays_as_stored(page, name)
            broken, shown = broken_pictures(page), count_pictures(page)
            assert not broken and shown >= least, f"{name}: {shown} pictures are shown, these are not: {broken}"
            page.screenshot(path=OUTPUT / f"7_{Path(name).stem}.png")
            print(f"{name}: {shown} pictures, none broken", flush=True)
        try:
            use_the_viewers(page, address)
            use_the_explorers(page, address)
            change_a_job(page, address)
        except Exception:
            page.screenshot(path=OUTPUT / "failed.png")
            raise
        browser.close()
    print(f"a reader's way through JupyterLab: {time.monotonic() - began:.0f} s; screenshots are in {OUTPUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
