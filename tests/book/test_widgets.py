import base64
import itertools

import ipywidgets
import pytest
from IPython.display import Markdown

from gradleak_lib.book import plots, widgets


def png(red: int = 0) -> bytes:
    import numpy as np

    return plots.encode(np.full((2, 2, 3), red, np.uint8))


FACTORS = [("Bins", (8, 32, 128)), ("Noise", (0.0, 0.1))]
KEYS = list(itertools.product(*(values for _, values in FACTORS)))
FRAMES = {key: png(number) for number, key in enumerate(KEYS)}
ALTS = {key: f"bins {key[0]}, noise {key[1]}" for key in KEYS}


def visible(box: ipywidgets.VBox, choice: list[int]) -> str:
    """The picture that the browser shows once each slider stands at its entry of ``choice``."""
    shown = box.children[1]
    for index in choice:
        shown = shown.children[index]
    return shown.value


@pytest.mark.parametrize("choice", list(itertools.product(range(3), range(2))))
def test_each_choice_shows_its_own_picture_and_text(choice):
    value = visible(widgets.explorer(FRAMES, FACTORS, ALTS), list(choice))
    key = (FACTORS[0][1][choice[0]], FACTORS[1][1][choice[1]])
    assert base64.b64encode(FRAMES[key]).decode() in value
    assert f'alt="{ALTS[key]}"' in value


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_stack_is_linked_to_the_slider_of_its_level(count, monkeypatch):
    links = []
    monkeypatch.setattr(widgets.ipw, "jslink", lambda source, target: links.append((source, target)))
    factors = [(f"factor {number}", (0, 1)) for number in range(count)]
    keys = list(itertools.product((0, 1), repeat=count))
    box = widgets.explorer({key: png() for key in keys}, factors, {key: str(key) for key in keys})
    sliders = box.children[0].children
    assert [slider.description for slider in sliders] == [label for label, _ in factors]
    assert len(links) == 2**count - 1
    for (slider, source), (stack, target) in links:
        assert (source, target) == ("index", "selected_index")
        assert stack.selected_index == slider.index == 0


def test_texts_cannot_break_out_of_the_tag():
    assert 'alt="&quot;&gt;&lt;b&gt;"' in widgets.picture(png(), '"><b>').value


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_kinds_of_pictures(kind):
    import numpy as np

    data = plots.encode(np.zeros((2, 2, 3), np.uint8), kind=kind)
    assert f"data:image/{kind};base64," in widgets.picture(data, "black").value


@pytest.mark.parametrize(
    ("frames", "factors", "alts", "message"),
    [
        (FRAMES, [], ALTS, "factors has 0 entries"),
        (FRAMES, FACTORS * 3, ALTS, "factors has 6 entries"),
        (FRAMES, [("Bins", ())], ALTS, "'Bins' has no value"),
        (dict(list(FRAMES.items())[1:]), FACTORS, ALTS, r"frames lacks 1 .*\(8, 0.0\)"),
        (FRAMES, FACTORS, {}, "alts lacks 6"),
        (dict.fromkeys(FRAMES, b"GIF8"), FACTORS, ALTS, "must be a PNG, JPEG or WebP"),
        (FRAMES, FACTORS, dict.fromkeys(ALTS, " "), "alt is empty"),
    ],
)
def test_bad_input(frames, factors, alts, message):
    with pytest.raises(ValueError, match=message):
        widgets.explorer(frames, factors, alts)


def test_show_is_one_output_with_a_still_and_a_text(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda *args, **options: shown.append((args, options)))
    widgets.show(ipywidgets.IntSlider(), png(), "A slider")
    [((bundle,), options)] = shown
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert bundle["text/plain"] == "A slider"
    assert options["raw"]
    with pytest.raises(ValueError, match="still is image/jpeg"):
        widgets.show(ipywidgets.IntSlider(), b"\xff\xd8\xff", "A slider")


def test_live_calls_the_function_in_jupyter():
    widget = widgets.live(lambda bins: bins, bins=(1, 9))
    [slider] = widget.kwargs_widgets
    assert not slider.continuous_update
    assert slider.value == 5


class Kernel:
    """What a cell sees of the kernel that runs it, which was sent the cell by papermill or by Jupyter."""

    def __init__(self, asks: bool) -> None:
        self.kernel = self
        self.asks = asks

    def get_parent(self, channel):
        return {"content": {"allow_stdin": self.asks}}


def test_live_leaves_a_line_in_a_page(monkeypatch):
    monkeypatch.setattr(widgets, "get_ipython", lambda: Kernel(asks=False))
    line = widgets.live(pytest.fail, bins=(1, 9))
    assert isinstance(line, Markdown)
    assert "make lab" in line.data
    monkeypatch.setattr(widgets, "get_ipython", lambda: Kernel(asks=True))
    assert not isinstance(widgets.live(lambda bins: bins, bins=(1, 9)), Markdown)
