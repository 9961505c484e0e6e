"""The figures of the page: each owns its sources, and draws what it is shown."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from bokeh.models import ColumnDataSource, CustomJS, LinearColorMapper, PointDrawTool, Range1d
from bokeh.palettes import Cividis256
from bokeh.plotting import figure

from resjax.explore import drawing
from resjax.explore.model import Regions, seats, softmax
from resjax.models.merges import Merge
from resjax.probes.functions.planes import Plane

LETTERS = "ABC"
BARS = 10  # classes at the point


def _source(columns: str) -> ColumnDataSource:
    """A source without rows."""
    return ColumnDataSource({name: [] for name in columns.split()})


class PlanePanel:
    """Decision regions on the plane, its corners, and the point; `point` is the source that moves."""

    def __init__(self):
        self.figure = figure(
            frame_width=515, frame_height=515, x_range=Range1d(), y_range=Range1d(), tools="pan,wheel_zoom,reset",
            x_axis_label="distance from A towards B (normalised pixels)",
            y_axis_label="distance from the line AB towards C (normalised pixels)",
        )  # fmt: skip
        self.point, self._regions = _source("x y"), _source("image x y dw dh")
        self._borders, self._seats = _source("xs ys"), _source("x y text")
        self._corners = _source("image x y dw dh letter letter_x letter_y")
        where = {"x": "x", "y": "y", "dw": "dw", "dh": "dh"}
        self.figure.image_rgba("image", source=self._regions, **where)
        self.figure.multi_line("xs", "ys", source=self._borders, color="#222222", line_width=1.5)
        outlined = {
            "text_color": "black",
            "text_outline_color": "white",
            "text_baseline": "middle",
            "text_align": "center",
        }
        self.figure.text(
            "x", "y", "text", source=self._seats, text_font_size="20px", text_font_style="bold", **outlined
        )
        self.figure.image_rgba("image", source=self._corners, **where)
        self.figure.block(
            "x", "y", "dw", "dh", source=self._corners, fill_color=None, line_color="black", line_width=1.5
        )
        self.figure.text(
            "letter_x", "letter_y", "letter", source=self._corners, text_font_size="20px",
            text_font_style="bold", **outlined,
        )  # fmt: skip
        dot = self.figure.scatter(
            "x", "y", source=self.point, size=17, fill_color="white", line_color="black", line_width=3,
        )  # fmt: skip
        dot.selection_glyph = dot.nonselection_glyph = None
        # The tool alone tells the server at the end of a drag; the callback does at every step of it.
        tool = PointDrawTool(renderers=[dot], add=False, drag=False)
        self.figure.add_tools(tool)
        self.figure.toolbar.active_drag = self.figure.toolbar.active_tap = tool
        self.figure.toolbar.logo = None
        code = "if (tool.active) source.data = {x: [cb_obj.x], y: [cb_obj.y]}"
        self.figure.js_on_event("pan", CustomJS(args={"source": self.point, "tool": tool}, code=code))
        self.figure.js_on_event("tap", CustomJS(args={"source": self.point, "tool": tool}, code=code))

    def show(self, regions: Regions, plane: Plane, pixels_3xHxWx3: np.ndarray, colours: Mapping[int, str]) -> None:
        """Draws another plane, or other regions on it."""
        xy = regions.xy_PxPx2
        low, high = xy[0, 0], xy[-1, -1]
        step = xy[0, 1, 0] - xy[0, 0, 0]
        for axis, ends in zip((self.figure.x_range, self.figure.y_range), zip(low, high, strict=True), strict=True):
            axis.start, axis.end = axis.reset_start, axis.reset_end = tuple(map(float, ends))
        side = high - low + step  # a grid point is the middle of its pixel
        image = drawing.regions_rgba(regions.class_PxP, regions.lead_PxP, colours)
        left, bottom = low - step / 2
        self._regions.data = {"image": [image], "x": [left], "y": [bottom], "dw": [side[0]], "dh": [side[1]]}
        self._borders.data = {
            "xs": [line[:, 0] for line in regions.borders],
            "ys": [line[:, 1] for line in regions.borders],
        }
        height, width = pixels_3xHxWx3.shape[1:3]
        size = 0.1 * (high[0] - low[0]) * np.array([width, height]) / max(width, height)
        at_3x2 = plane.corners_3x2 - size / 2
        covered = (abs(xy[:, :, None] - plane.corners_3x2[None, None]) < 0.7 * size).all(-1).any(-1)  # by these images
        free_PxP = np.where(covered, -1, regions.class_PxP)
        numbers = {k: xy[seat] for k, seat in seats(free_PxP).items() if k in colours}
        self._seats.data = {
            "x": [x for x, _ in numbers.values()], "y": [y for _, y in numbers.values()],
            "text": list(map(str, numbers)),
        }  # fmt: skip
        self._corners.data = {
            "image": [drawing.image_rgba(pixels) for pixels in pixels_3xHxWx3],
            "x": at_3x2[:, 0], "y": at_3x2[:, 1], "dw": [size[0]] * 3, "dh": [size[1]] * 3, "letter": list(LETTERS),
            "letter_x": plane.corners_3x2[:, 0], "letter_y": at_3x2[:, 1] + size[1] * 1.22,
        }  # fmt: skip

    def move(self, x: float, y: float) -> None:
        """Puts the point there."""
        self.point.data = {"x": [float(x)], "y": [float(y)]}


def _still(**kwargs):
    """A figure that is looked at alone."""
    return figure(tools="", toolbar_location=None, **kwargs)


class ImagePanel:
    """The image at the point."""

    def __init__(self):
        self.figure = _still(width=150, height=150, x_range=(0, 1), y_range=(0, 1), min_border=0)
        self.figure.axis.visible = False
        self.figure.outline_line_color = "#999999"
        self.source = _source("image")
        self.figure.image_rgba("image", x=0, y=0, dw=1, dh=1, source=self.source)

    def show(self, pixels_HxWx3: np.ndarray) -> None:
        """Draws an image."""
        self.source.data = {"image": [drawing.image_rgba(pixels_HxWx3)]}


class LogitPanel:
    """Bars of the logits, with the probabilities as text; of many classes the likeliest."""

    def __init__(self):
        self.figure = _still(
            width=245, height=235, y_range=["0"], x_range=Range1d(), x_axis_label="logit; right: probability"
        )
        self.source = _source("class logit p end colour")
        self.figure.hbar("class", right="logit", height=0.75, color="colour", source=self.source)
        self.figure.text(
            "end",
            "class",
            "p",
            source=self.source,
            text_align="right",
            text_baseline="middle",
            text_font_size="11px",
            x_offset=-4,
        )
        self.figure.grid.visible = False

    def reach(self, low: float, high: float) -> None:
        """The smallest and largest logit to come."""
        span = max(high - low, 1e-6)
        self.figure.x_range.start, self.figure.x_range.end = min(low, 0) - 0.03 * span, max(high, 0) + 0.3 * span

    def show(self, logits_K: np.ndarray, colours: Mapping[int, str]) -> None:
        """Draws an answer."""
        p_K, many = softmax(logits_K.astype(float)), len(logits_K) > BARS
        classes = np.argsort(-logits_K, kind="stable")[:BARS].tolist() if many else range(len(logits_K))
        names = list(map(str, classes))
        if list(self.figure.y_range.factors) != names[::-1]:
            self.figure.y_range.factors = names[::-1]
        self.source.data = {
            "class": names, "logit": logits_K[list(classes)], "p": [f"{p_K[k]:.2f}" for k in classes],
            "end": [self.figure.x_range.end] * len(names), "colour": [colours.get(k, drawing.OTHER) for k in classes],
        }  # fmt: skip


class MaskPanel:
    """Masks of merge points, or matrices of blocks, each in its own range, which stands below it."""

    WIDTH, HEIGHT, TEXT = 400, 160, 16

    def __init__(self):
        self.figure = _still(
            width=self.WIDTH, height=self.HEIGHT, x_range=(0, self.WIDTH), y_range=(0, self.HEIGHT), min_border=0
        )
        self.figure.axis.visible = self.figure.grid.visible = False
        self.figure.outline_line_color = None
        self.source = _source("image x y dw dh middle text")
        mapper = LinearColorMapper(Cividis256, low=0, high=1)
        self.figure.image("image", "x", "y", "dw", "dh", source=self.source, color_mapper=mapper)
        self.figure.text(
            "middle", "y", "text", source=self.source, text_align="center", text_baseline="top", text_font_size="11px"
        )

    def show(self, masks: Mapping[str, np.ndarray]) -> None:
        """Draws masks [H, W]."""
        self.figure.visible = bool(masks)
        columns, size = self._packed(len(masks))
        data = {name: [] for name in self.source.data}
        for i, (name, mask_HxW) in enumerate(masks.items()):
            row, column = divmod(i, columns)
            low, high = float(mask_HxW.min()), float(mask_HxW.max())
            x, y = (column + 0.5) * self.WIDTH / columns, self.HEIGHT - (row + 1) * (size + self.TEXT) + self.TEXT
            height, width = size * np.array(mask_HxW.shape) / max(mask_HxW.shape)
            level = f"{low:.2f} to {high:.2f}" if high > low else f"{low:.2f} everywhere"
            text = f"{short(name)}: {level}" if self.WIDTH / columns > 100 else short(name)
            relative = (mask_HxW[::-1] - low) / (high - low) if high > low else np.full(mask_HxW.shape, 0.5)
            for key, value in zip(data, (relative, x - width / 2, y, width, height, x, text), strict=True):
                data[key].append(value)
        self.source.data = data

    def _packed(self, count: int) -> tuple[int, float]:
        """Columns, and side of a square, that give so many the largest squares."""
        sizes = {
            columns: min(self.WIDTH / columns - 4, self.HEIGHT / -(-count // columns) - self.TEXT)
            for columns in range(1, count + 1)
        }
        return max(sizes.items(), key=lambda found: found[1], default=(1, 0.0))


class GatePanel:
    """Mean and spread of what the merge points multiply by."""

    def __init__(self):
        self.figure = _still(
            width=400,
            height=200,
            x_range=Range1d(),
            y_range=Range1d(),
            x_axis_label="merge point (stage.block)",
            y_axis_label="value",
        )
        self.source = _source("x mean low high")
        self.figure.segment("x", "low", "x", "high", source=self.source, line_width=6, color="#9FB4C7")
        self.figure.scatter("x", "mean", source=self.source, size=9, color="#123456")
        self.figure.xgrid.visible = False

    def begin(self, merges: Mapping[str, Merge | None]) -> None:
        """Gets ready for the merge points of a net."""
        names, gates = list(merges), [merge.gates[-1] for merge in merges.values() if merge and merge.gates]
        self.figure.x_range.start, self.figure.x_range.end = -0.5, len(names) - 0.5
        self.figure.xaxis.ticker = list(range(0, len(names), -(-len(names) // 10)))
        self.figure.xaxis.major_label_overrides = dict(enumerate(map(short, names)))
        bounded = len(gates) == len(names) and all(np.isfinite(gate.high) for gate in gates)
        low, high = (min(g.low for g in gates), max(g.high for g in gates)) if bounded else (0.0, 0.0)
        self.figure.y_range.start, self.figure.y_range.end = low - 0.02 * (high - low), high + 0.02 * (high - low)

    def show(self, gates: pd.DataFrame) -> None:
        """Draws the rows of `model.Look.gates`; the axis grows where nothing bounds them."""
        self.source.data = {"x": np.arange(len(gates))} | {
            key: gates[key].to_numpy() for key in ("mean", "low", "high")
        }
        highest = float(gates[["mean", "high"]].max(axis=None))
        if np.isfinite(highest) and highest > self.figure.y_range.end:
            self.figure.y_range.end = 1.15 * highest


def short(block: str) -> str:
    """stage1_block2 -> 1.2."""
    return block.replace("stage", "").replace("_block", ".")
