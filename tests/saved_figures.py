"""What tests of figures share."""


def check_files(paths, name):
    """A PNG and a PDF whose fonts are embedded, named after the figure."""
    png, pdf = paths
    assert (png.name, pdf.name) == (f"{name}.png", f"{name}.pdf")
    assert png.read_bytes().startswith(b"\x89PNG") and b"FontFile2" in pdf.read_bytes()
