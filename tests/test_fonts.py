"""Names of classes in any script: an installed font that has the characters draws them."""

from __future__ import annotations

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection
from matplotlib.ft2font import FT2Font

from engine import plots
from engine.plots import fonts

CAT, DOG, HORSE = '\u732b\u72d7\u9a6c'
FACES = hasattr(FT2Font, 'num_faces') and matplotlib.__version_info__ >= (3, 11)


def font(characters, family, style='Regular'):
    """A font in which each character is a square."""
    builder = FontBuilder(1000, isTTF=True)
    names = ['.notdef', *(f'uni{ord(c):04X}' for c in characters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f'uni{ord(c):04X}' for c in characters})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder.setupGlyf({name: pen.glyph() for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({'familyName': family, 'styleName': style})
    builder.setupOS2()
    builder.setupPost()
    return builder.font


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Only these files are installed, after Matplotlib made its list."""
    monkeypatch.setattr(fonts, 'findSystemFonts', lambda: [str(p) for p in tmp_path.iterdir()])
    fonts._families.cache_clear()
    yield lambda name, what: what.save(tmp_path / name)
    fonts._families.cache_clear()
    fonts.choose([])


def families():
    """File names of the fonts that are used after Matplotlib's own."""
    first, *others = matplotlib.rcParams['font.family']
    assert first == 'DejaVu Sans'
    return [name.rpartition('/')[2] for name in others]


def picture_of(text, path):
    plots.picture_grid(plots.np.zeros((1, 3, 8, 8), 'uint8'), [text], path)
    return path.read_bytes()


def test_no_font_is_looked_for_where_none_is_needed(install, monkeypatch):
    monkeypatch.setattr(fonts, 'findSystemFonts', None)
    assert fonts.choose(['cat', 'caf\u00e9', 'a\u200bb', 'tab\there', '\udcff']) is None
    assert families() == []


def test_a_font_installed_later_draws_the_names(install, tmp_path):
    """Even if Matplotlib's list has another font of its name."""
    line = fonts.choose([CAT, 'dog'])
    assert 'boxes' in line
    assert CAT in line
    assert 'fonts-noto-cjk' in line
    box = picture_of(CAT, tmp_path / 'x.png')
    (tmp_path / 'x.png').unlink()
    fonts._families.cache_clear()
    install('new.ttf', font(CAT, 'DejaVu Sans'))
    assert fonts.choose([CAT, 'dog']) is None
    assert families() == ['new.ttf#0']
    assert picture_of(CAT, tmp_path / 'x.png') != box


def test_the_font_with_the_most_characters_is_chosen_sans_serif_first(install):
    install('a.ttf', font(CAT, 'Some Song'))
    install('b.ttf', font(CAT + DOG, 'Some Song'))
    install('c.ttf', font(CAT + DOG, 'Micro Hei', 'Bold'))
    install('d.ttf', font(CAT + DOG, 'Micro Hei'))
    install('e.ttf', font(HORSE, 'Horses'))
    assert fonts.choose([CAT + DOG, HORSE]) is None
    assert families() == ['d.ttf#0', 'e.ttf#0']


def test_characters_that_no_font_has_are_named_together(install):
    install('a.ttf', font(DOG, 'Dogs'))
    many = [chr(0x4E00 + number) for number in range(20)]
    line = fonts.choose([DOG, *many])
    assert f'characters {" ".join(many[:8])} ...: they' in line
    assert DOG not in line
    assert families() == ['a.ttf#0']


@pytest.mark.skipif(not FACES, reason='this Matplotlib reads only the first face of a file')
def test_all_faces_of_a_collection_are_looked_at(install):
    collection = TTCollection()
    collection.fonts = [font(CAT, 'Noto Sans CJK JP'), font(DOG, 'Noto Sans CJK SC')]
    install('all.ttc', collection)
    assert fonts.choose([DOG]) is None
    assert families() == ['all.ttc#1']


def test_the_first_face_of_a_collection_is_read_by_every_matplotlib(install):
    collection = TTCollection()
    collection.fonts = [font(CAT + DOG, 'Noto Sans CJK JP'), font(CAT, 'Noto Sans CJK SC')]
    install('all.ttc', collection)
    assert fonts.choose([DOG]) is None
    assert families() == ['all.ttc#0']


def test_damaged_fonts_are_skipped(install, tmp_path):
    (tmp_path / 'bad.ttf').write_bytes(b'no font')
    install('good.ttf', font(CAT, 'Cats'))
    assert fonts.choose([CAT]) is None
    assert families() == ['good.ttf#0']
