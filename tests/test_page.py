"""The page writer, read back by a parser, and the page of the surface study."""

import base64
import io
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from experiments.surface import page as surface_page
from resjax.analysis import page
from resjax.config import ConfigError

PIXEL = base64.b64decode(  # a PNG of 2 x 1 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAC0lEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)
EVIL = "<script>alert(\"1\")</script> & 'x'"
EMPTY = {"meta", "img", "br", "hr", "link"}  # elements without an end


class Reader(HTMLParser):
    """What a page holds: (element, attributes, text) in their order, and a check that elements close in turn."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])
        if tag not in EMPTY:
            self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        return [e for e in self.found if e[0] == tag and wanted.items() <= e[1].items()]

    def texts(self, tag, **wanted):
        return [text for _, _, text in self.all(tag, **wanted)]


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(PIXEL)
    return path


def written(tmp_path, *sections, title="title", header=None):
    path = page.write(tmp_path / "out" / "page.html", title, sections, header or {})
    return Reader(path.read_text(encoding="utf-8"))


def test_a_page_is_whole_without_anything_around_it(tmp_path, png):
    table = pd.DataFrame({"a": ["1"]}, index=["row"])
    sections = page.Section("one", ["text"], [page.Figure(png, "caption", "words")], table, "numbers")
    read = written(tmp_path, sections)
    (image,) = read.all("img")
    packed = io.BytesIO(base64.b64decode(image[1]["src"].removeprefix("data:image/webp;base64,")))
    assert Image.open(packed).tobytes() == Image.open(png).convert("RGB").tobytes()  # pixel by pixel
    size = [str(round(page.SHOWN * pixels)) for pixels in (2, 1)]
    assert [image[1]["width"], image[1]["height"], image[1]["alt"]] == [*size, "words"]
    assert not [e for e in read.found if e[0] in ("script", "link", "iframe", "object", "base")]
    assert not [e for e in read.found for name in e[1] if name.startswith("on") or name in ("href", "srcset", "style")]
    assert "url(" not in page.STYLE and "@import" not in page.STYLE and "://" not in page.STYLE
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]


def test_its_elements_say_what_they_are(tmp_path, png):
    table = pd.DataFrame({"a": ["1"]}, index=pd.Index(["row"], name="merge"))
    figures = [(png, "caption", "words")]
    read = written(tmp_path, page.Section("one", ["p1", "p2"], figures, table, "numbers"), page.Section("two"))
    assert read.all("html")[0][1] == {"lang": "en"} and read.texts("title") == read.texts("h1") == ["title"]
    assert [e[1]["name"] for e in read.all("meta", name="viewport")] == ["viewport"]
    assert len(read.all("main")) == 1 and read.texts("h2") == ["one", "two"] and read.texts("p") == ["p1", "p2"]
    for section, heading in zip(read.all("section"), read.all("h2"), strict=True):
        assert section[1]["aria-labelledby"] == heading[1]["id"]
    assert read.texts("figcaption") == ["caption"] and read.texts("caption") == ["numbers"]
    assert read.texts("th", scope="col") == ["merge", "a"] and read.texts("th", scope="row") == ["row"]
    boxes = read.all("div", role="region", tabindex="0")
    assert [box[1]["aria-label"] for box in boxes] == ["words", "numbers"]


def test_an_index_of_two_levels_makes_groups_of_rows(tmp_path):
    index = pd.MultiIndex.from_tuples([("error", "plain"), ("error", "stn"), ("gap", "plain")], names=["of", "prior"])
    read = written(tmp_path, page.Section("one", table=pd.DataFrame({"add": ["1", "2\n[0, 3]", "3"]}, index=index)))
    assert read.texts("th", scope="rowgroup", colspan="2") == ["error", "gap"]
    assert read.texts("th", scope="row") == ["plain", "stn", "plain"]
    assert read.texts("td") == ["1", "2\n[0, 3]", "3"] and len(read.all("tbody")) == 2
    assert read.texts("th", scope="col") == ["prior", "add"]


def test_markup_in_text_is_shown_and_not_obeyed(tmp_path, png):
    table = pd.DataFrame({EVIL: [EVIL]}, index=[EVIL])
    section = page.Section(EVIL, [EVIL], [(png, EVIL, EVIL)], table, EVIL)
    read = written(tmp_path, section, title=EVIL, header={EVIL: EVIL})
    assert not read.all("script")
    for tag in ("title", "h1", "dt", "dd", "h2", "p", "figcaption", "caption", "td"):
        assert read.texts(tag) == [EVIL], tag
    assert read.texts("th") == ["", EVIL, EVIL] and read.all("img")[0][1]["alt"] == EVIL


def test_parts_are_folded_and_closed(tmp_path, png):
    inner = page.Section("more", ["inner"], [(png, "caption", "words")], facts={"key": "value"})
    read = written(tmp_path, page.Section("one", ["outer"], facts={"run": "command"}, folded=[inner]))
    (part,) = read.all("details")
    assert "open" not in part[1] and read.texts("summary") == ["more"]
    assert "inner" in part[2] and "keyvalue" in part[2].replace("\n", "") and "outer" not in part[2]
    assert read.texts("dt") == ["run", "key"] and read.texts("h2") == ["one"]


@pytest.mark.parametrize("number", [page.LONG, page.LONG + 1])
def test_a_long_page_lists_its_sections(tmp_path, number):
    read = written(tmp_path, *(page.Section(f"section {i}") for i in range(number)))
    links = {element[1]["href"]: element[2] for element in read.all("a")}
    heads = {f"#{element[1]['id']}": element[2] for element in read.all("h2")}
    assert len(heads) == number and links == (heads if number > page.LONG else {})


def test_only_a_broad_figure_scrolls_on_a_phone(tmp_path):
    for pixels in (900, 1400):
        Image.new("L", (pixels, 10)).save(tmp_path / f"{pixels}.png")
    figures = [(tmp_path / f"{pixels}.png", "", str(pixels)) for pixels in (900, 1400)]
    images = written(tmp_path, page.Section("one", figures=figures)).all("img")
    assert [image[1].get("class") for image in images] == [None, "broad"]


def test_the_header_is_a_list_of_terms(tmp_path):
    read = written(tmp_path, header={"command": "python -m x", "device": "1 x cpu"})
    assert dict(zip(read.texts("dt"), read.texts("dd"), strict=True)) == {"command": "python -m x", "device": "1 x cpu"}


def test_what_is_no_png_ends_in_one_line_and_keeps_the_old_page(tmp_path, png):
    written(tmp_path, title="old")
    broken = tmp_path / "broken.png"
    broken.write_text("<svg/>")
    for path, words in ((broken, "not a PNG"), (tmp_path / "none.png", "No such file")):
        with pytest.raises(ConfigError, match=words):
            written(tmp_path, page.Section("one", figures=[(path, "", "")]))
    assert "<title>old</title>" in (tmp_path / "out" / "page.html").read_text()


# --- The page of a data set -------------------------------------------------------------------------------------
def card():
    rows = [
        ("error", "mixup", "add", 3, 0, 0.02, 0.01, 0.03),
        ("error", "plain", "mul", 2, 1, 0.12345, 0.1, 0.15),
        ("error", "plain", "add", 3, 0, 0.02, 0.01, 0.034567),
        ("error", "mixup", "mul", 0, 3, None, None, None),
        ("jacobian", "plain", "add", 3, 0, 0.5, None, None),
    ]
    columns = ["reading", "arm", "merge", "n", "diverged", "mean", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns).assign(dataset="digits")


RACE = pd.DataFrame({
    "dataset": ["digits", "all"], "reading": "jacobian", "tau": [0.25, 0.9], "tau_low": [-0.1, 0.8],
    "tau_high": [0.6, 1.0], "n": 4,
})  # fmt: skip


def test_the_table_has_every_number_of_the_card():
    table = surface_page.numbers(card(), RACE)
    heads = ["test error (%)", "test error (%)", "Jacobian of probabilities (1/pixel std); tau +0.25 [-0.10, +0.60]"]
    assert table.index.tolist() == list(zip(heads, ["plain", "mixup", "plain"], strict=True))
    assert table["add"].tolist() == ["2\n[1, 3.46]", "2\n[1, 3]", "0.5"]
    assert table["mul"].tolist() == ["12.3\n[10, 15]\nn = 2", "diverged", ""]


def test_the_page_of_a_data_set_tells_verdicts_origin_and_figures_in_order(tmp_path, png):
    verdicts = {"smooth": "it depends", "symmetric": "refuted"}
    header = {"command": "python -m experiments.surface"} | verdicts
    images = {"card": png, "gaps": png}
    path = surface_page.write(tmp_path / "digits.html", "digits", verdicts, card(), RACE, images, header)
    read = Reader(path.read_text())
    assert read.texts("dt") == ["command"]
    assert read.texts("h2") == ["Verdicts", "What was measured", "Report card", "Between two images", "All numbers"]
    verdict, other, method, _ = read.texts("p")
    assert (verdict, other) == ("smooth: it depends", "symmetric: refuted")
    assert "merges add, mul were trained on digits" in method and "plain: no prior; mixup." in method
    assert "over 3 seeds" in method and "4 replicas diverged" in method
    assert all(e[1]["alt"] for e in read.all("img")) and len(read.all("img")) == 2


def test_a_page_of_another_data_set_ends_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="has nothing of mnist"):
        surface_page.write(tmp_path / "mnist.html", "mnist", {}, card(), RACE, {}, {})
