"""The page: choosers on the left, the plane in the middle, and what the net does at the point on the right."""

import html
import traceback
from collections.abc import Callable
from functools import wraps

import numpy as np
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.model import Model
from bokeh.models import Button, Div, Select, Spinner
from bokeh.themes import Theme

from resjax.config import ConfigError
from resjax.explore import drawing, model
from resjax.explore.panels import LETTERS, GatePanel, ImagePanel, LogitPanel, MaskPanel, PlanePanel
from resjax.models.merges import Merge
from resjax.probes.functions import planes

LEFT = 220  # width of the choosers
TITLE = "resjax: the plane through three images"
_QUIET = {"axis_line_color": None, "major_tick_line_color": "#999999", "minor_tick_line_color": None}
THEME = Theme(json={"attrs": {
    "Plot": {"outline_line_color": "#999999"},
    "Axis": _QUIET | {"axis_label_text_font_style": "normal", "axis_label_text_font_size": "12px"},
    "Grid": {"grid_line_color": "#E8E8E8"},
}})  # fmt: skip


def said(callback: Callable) -> Callable:
    """A method of `Page` whose errors are said on the page, which goes on."""

    @wraps(callback)
    def careful(self, *args):
        try:
            callback(self, *args)
        except ConfigError as error:
            self.say(str(error))
        except Exception as error:  # whatever it is: the person who looks at the page should know
            self.say(f"{type(error).__name__}: {error}")
            traceback.print_exc()

    return careful


def when(chooser: Model, name: str, do: Callable[[], None]) -> None:
    """Does something whenever a property changes."""
    chooser.on_change(name, lambda attr, old, new: do())


CONNECTED = {
    True: "<b>What blocks read</b>: a row per block, and the head; a column per earlier output, from the stem's on.",
    False: "<b>How blocks mix streams</b>: the row's stream in the next one, the column's.",
}


class Page:
    """One session: what is chosen, and the panels that show it. It fills the document."""

    def __init__(self, document: Document, runs: list[model.Run], pictures: model.Pictures):
        self.document, self.runs, self.pictures = document, runs, pictures
        self._rng = np.random.default_rng()  # of the person's choices, not of any number that is reported
        self._colours: dict[int, str] = {}
        self._plane: planes.Plane | None = None
        self._due = None  # the callback that will draw the plane
        self.plane, self.image, self.logits = PlanePanel(), ImagePanel(), LogitPanel()
        self.masks, self.gates, self.weights = MaskPanel(), GatePanel(), MaskPanel()
        self.run = Select(
            title="run", options=[(str(i), run.name) for i, run in enumerate(runs)], value="0", width=LEFT
        )
        self.seed = Select(title="replica (seed)", width=LEFT)
        self.corners = [Corner(self, letter, i) for i, letter in enumerate(LETTERS)]
        self.status, self.legend, self.here, self.words = (
            Div(width=LEFT),
            Div(width=590),
            Div(width=150),
            Div(width=400),
        )
        self.spread, self.read = Div(width=400), Div(width=400)
        document.title, document.theme = TITLE, THEME
        document.add_root(self._layout())
        when(self.run, "value", self.change_run)
        when(self.seed, "value", self.redraw)
        when(self.plane.point, "data", self.look)
        self.change_run()

    def _layout(self):
        choosers = column(self.run, self.seed, *(corner.layout for corner in self.corners), self.status, spacing=8)
        here = column(
            row(column(Div(text="<b>The image at the point</b>"), self.image.figure, self.here), self.logits.figure),
            self.words, self.masks.figure, self.spread, self.gates.figure, self.read, self.weights.figure, spacing=4,
        )  # fmt: skip
        return row(choosers, column(self.plane.figure, self.legend), here, spacing=10, margin=(6, 0, 6, 6))

    @property
    def chosen(self) -> tuple[model.Run, int]:
        """Run and seed."""
        return self.runs[int(self.run.value)], int(self.seed.value)

    def say(self, text: str, error: bool = True) -> None:
        """A line below the choosers."""
        colour = "#B00020" if error else "#555555"
        self.status.text = f'<div role="status" style="color:{colour}">{html.escape(text)}</div>' if text else ""

    @said
    def change_run(self) -> None:
        """Another run: its replicas, and all that hangs on its net."""
        run = self.runs[int(self.run.value)]
        seeds = list(map(str, run.variables))
        if self.seed.options != seeds:
            self.seed.options = seeds
        if self.seed.value not in seeds:
            self.seed.value = seeds[0]
        self.gates.begin(run.merges)
        self.words.text = f"<b>What the merges multiply by</b>: {meaning(run.merges)}"
        self.redraw()

    @said
    def redraw(self) -> None:
        """Draws the plane soon: what was chosen, and that it is being computed, is shown first."""
        if self._due is None:
            self.say("computing the plane ...", error=False)
            self._due = self.document.add_next_tick_callback(self.draw)

    def draw(self) -> None:
        """Draws the plane now."""
        self._due = None
        self.say("")
        self._draw()

    @said
    def _draw(self) -> None:
        run, seed = self.chosen
        x_3xHxWxC = self.pictures.inputs(corner.index for corner in self.corners)
        pixels = self.pictures.colours(x_3xHxWxC)
        answers = [model.look(run, seed, x_HxWxC).logits_K for x_HxWxC in x_3xHxWxC]
        plane = planes.through(x_3xHxWxC)
        regions = model.regions(run, seed, plane)
        moved = self._plane is None or not np.array_equal(plane.corners_3x2, self._plane.corners_3x2)
        self._plane, self._colours = plane, drawing.class_colours(regions.class_PxP, self.pictures.num_classes)
        for corner, own, logits_K in zip(self.corners, pixels, answers, strict=True):
            corner.show(own, logits_K, self._colours)
        self.logits.reach(*regions.extent)
        self.plane.figure.title.text = f"{run.name}, seed {seed}"
        self.plane.show(regions, plane, pixels, self._colours)
        some = "" if len(self._colours) == self.pictures.num_classes else ", the most frequent here; others are grey"
        self.legend.text = (
            f"<b>Classes</b> {drawing.chips(self._colours, self._colours)}{some}. The paler, the less sure is the net; "
            "lines are borders. <b>Drag the point, or click</b>, and see on the right what the net makes of the image "
            "there, a weighted sum of A, B and C."
        )
        if moved:
            self.plane.move(*plane.corners_3x2.mean(0))
        self.look()

    @said
    def look(self) -> None:
        """Shows what the net does at the point."""
        if self._plane is None:
            return
        if not len(self.plane.point.data["x"]):  # deleted by the backspace key
            self.plane.move(*self._plane.corners_3x2.mean(0))
            return
        run, seed = self.chosen
        x, y = float(self.plane.point.data["x"][0]), float(self.plane.point.data["y"][0])
        image = self._plane.images(np.array([[x, y]]))
        seen = model.look(run, seed, image[0])
        self.image.show(self.pictures.colours(image)[0])
        self.logits.show(seen.logits_K, self._colours)
        self.masks.show(seen.masks)
        self.gates.show(seen.gates)
        self.weights.show(seen.weights)
        self.read.text = CONNECTED[model.READS in seen.weights] if seen.weights else ""
        k = int(seen.logits_K.argmax())
        p = model.softmax(seen.logits_K.astype(float))[k]
        self.here.text = (
            f"at ({x:.1f}, {y:.1f}) the net says<br>{drawing.chip(k, self._colours)} with probability {p:.2f}"
        )
        self.spread.text = (
            "Above: its mean over channels, a mask, per merge point; dark is the lowest and light the highest value. "
            if seen.masks else "This net is of vectors: it has no maps, and so no masks. "
        ) + "Below: its mean (dot) and 10 to 90 % quantiles over channels and positions."  # fmt: skip


class Corner:
    """Chooses one of the three images."""

    def __init__(self, page: Page, letter: str, index: int):
        self._page, self._letter = page, letter
        labels_N = page.pictures.split.labels_N
        classes = [("", "any"), *((str(k), f"class {k}") for k in range(page.pictures.num_classes))]
        first = np.flatnonzero(labels_N == index % page.pictures.num_classes)
        start = int(first[0]) if len(first) else index
        self.spinner = Spinner(low=0, high=len(labels_N) - 1, step=1, value=start, width=75, margin=0)
        self.label = Select(options=classes, value="", width=80, margin=0)
        self.random = Button(label="random", width=62, margin=0)
        self.text = Div(width=LEFT, height=92)
        self.layout = column(self.text, row(self.spinner, self.label, self.random, spacing=3, margin=(0, 5, 5, 5)))
        when(self.spinner, "value", page.redraw)
        when(self.label, "value", self.draw)
        self.random.on_click(self.draw)

    @property
    def index(self) -> int:
        """Of the test image."""
        if self.spinner.value is None or not 0 <= self.spinner.value <= self.spinner.high:
            raise ConfigError(f"{self._letter}: choose a test image from 0 to {self.spinner.high:.0f}")
        return int(self.spinner.value)

    def draw(self) -> None:
        """Another image, at random, of the chosen class."""
        label = int(self.label.value) if self.label.value else None
        self.spinner.value = self._page.pictures.another(self._page._rng, label)

    def show(self, pixels_HxWx3: np.ndarray, logits_K: np.ndarray, colours: dict[int, str]) -> None:
        """Shows the image, its label and the net's class."""
        k, label = int(logits_K.argmax()), int(self._page.pictures.split.labels_N[self.index])
        p = model.softmax(logits_K.astype(float))[k]
        self.text.text = (
            f'<div style="display:flex;gap:10px"><div>{drawing.picture(pixels_HxWx3, 86)}</div>'
            f"<div><b>{self._letter}</b><br>test image {self.index}"
            f"<br>label {drawing.chip(label, colours)}<br>net says {drawing.chip(k, colours)} ({p:.2f})</div></div>"
        )


def meaning(merges: dict[str, Merge | None]) -> str:
    """What `masks.factor` is of these merges, in words."""
    found = {}
    for merge in merges.values():
        formula = html.escape(merge.formula) if merge else "an undeclared merge"
        gates = merge.gates if merge else ()
        found[formula] = f"the gate of {formula}" if gates else f"|f|, as {formula} has no gate"
    return "; ".join(found.values())
