"""deploy/server/page/ in a real browser, in front of the real server.

Playwright answers where the server would have to fail; the server answers all other requests.
"""

from __future__ import annotations

import io
import json
import re
import shutil

import numpy as np
import pytest
import serving
from PIL import Image

pytestmark = pytest.mark.browser

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
FLAGS = '--disable-gpu --disable-quic --no-first-run --disable-background-networking'
FLAGS += ' --disable-component-update --disable-sync'
HOSTILE = '<img src=x onerror=document.title="pwned">'

# Of each visible piece of text, how its colour contrasts with what is painted behind it (WCAG 2).
CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const luminance = (...layers) => {
    canvas.fillStyle = 'white';
    for (const layer of ['white', ...layers]) {
      canvas.fillStyle = layer;
      canvas.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest('.unseen')) continue;
    const behind = [];
    for (let up = element; up; up = up.parentElement) {
      behind.unshift(getComputedStyle(up).backgroundColor);
    }
    const [a, b] = [luminance(...behind), luminance(...behind, getComputedStyle(element).color)];
    found.push([text, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""


def picture(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


def part(name: str, data: bytes | None = None) -> dict:
    """A file for the file chooser."""
    return {'name': name, 'mimeType': 'image/png', 'buffer': picture() if data is None else data}


def carrying(page, *files: dict):
    """The DataTransfer of an event that drops or pastes these files."""
    return page.evaluate_handle(
        """files => {
          const carried = new DataTransfer();
          for (const [name, bytes] of files) {
            carried.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }));
          }
          return carried;
        }""",
        [[file['name'], list(file['buffer'])] for file in files],
    )


def answer(**more: object) -> dict:
    """A response of POST /classify, with the values of the test."""
    return {
        'model': more.pop('model', serving.MODEL),
        'width': 40,
        'height': 30,
        'classes': [{'name': 'cat', 'index': 0, 'probability': 0.75}],
        'milliseconds': {'decode': 2.0, 'queue': 0.46, 'network': 12.4},
        'batch': 3,
        **more,
    }


# Word in the names of classes -> the number of lines that it takes.
LINES_OF_WORDS = r"""() => {
  const found = {};
  for (const { firstChild: text } of document.querySelectorAll('.name')) {
    for (const { 0: word, index } of text.data.matchAll(/\S+/g)) {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      found[word] = range.getClientRects().length;
    }
  }
  return found;
}"""


@pytest.fixture(scope='module')
def chromium():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(
            f'the tests of the page need a browser: none of {", ".join(BROWSERS)} is installed'
        )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail('the tests of the page need Playwright: pip install playwright')
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, chromium_sandbox=False, args=FLAGS.split()
        )
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def address(chromium, tmp_path_factory):
    folder = serving.export_tiny(tmp_path_factory.mktemp('page'))
    with serving.command(folder) as server:
        yield f'http://127.0.0.1:{server.port}/'


@pytest.fixture
def visit(chromium, address):
    """Opens the page in a fresh profile; at the end, no page may have logged an error."""
    contexts, errors = [], []

    def collect(message):
        # The browser logs answers of 4xx and 5xx, which are expected.
        if message.type in ('error', 'warning') and 'Failed to load resource' not in message.text:
            errors.append(message.text)

    def visit(prepare=lambda page: None, **options):
        context = chromium.new_context(base_url=address, **options)
        context.set_default_timeout(8000)
        contexts.append(context)
        page = context.new_page()
        page.on('console', collect)
        page.on('pageerror', lambda error: errors.append(str(error)))
        prepare(page)
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(visit):
    return visit()


@pytest.fixture
def expect(chromium):
    from playwright.sync_api import expect

    return expect


def give(page, *files: dict) -> None:
    page.set_input_files('#picker', list(files))


def refuse(status: int, error: str, **headers: str):
    """A handler of requests that answers with this error."""
    body = json.dumps({'error': error})
    return lambda route: route.fulfill(status=status, body=body, headers=headers)


def test_header_shows_the_servers_model(page, expect):
    about = page.request.get('about').json()
    expect(page.locator('#model')).to_have_text(about['model'])
    expect(page.locator('#facts')).to_contain_text(f'{about["classes"]} classes')
    assert about['model'] in page.title()


def test_page_loads_nothing_from_other_servers(page):
    reply = page.request.get('')
    policy = reply.headers['content-security-policy']
    assert "default-src 'self'" in policy
    assert re.search(r"img-src [^;]*'self'[^;]*", policy)
    assert 'blob:' in policy  # thumbnails
    assert 'data:' in policy  # the icon
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', reply.text()) == ['page.css', 'page.js']


def test_bars_show_the_servers_answer_in_its_order(page, expect):
    with page.expect_response('**/classify?top=5') as caught:
        give(page, part('a cat.png'))
    classes = caught.value.json()['classes']
    expect(page.locator('.bars li')).to_have_count(len(classes))
    meters = page.locator('.bar').all()
    shares = [float(meter.get_attribute('aria-valuenow')) for meter in meters]
    assert [meter.get_attribute('aria-label') for meter in meters] == [c['name'] for c in classes]
    assert shares == [c['probability'] for c in classes]
    assert sum(shares) == pytest.approx(sum(c['probability'] for c in classes))
    written = page.locator('.percent').all_text_contents()
    assert written == [f'{100 * share:.1f}%' for share in shares]
    widths = page.evaluate(
        '() => [...document.querySelectorAll(".bar")].map('
        'bar => bar.firstChild.offsetWidth / bar.offsetWidth)'
    )
    assert widths == pytest.approx(shares, abs=0.02)
    expect(page.locator('#log')).to_contain_text(f'a cat.png: {classes[0]["name"]}, {written[0]}')


def test_card_shows_times_and_batch(visit, expect):
    page = visit(lambda page: page.route('**/classify*', lambda r: r.fulfill(json=answer())))
    give(page, part('a.png'))
    values = page.locator('.times dd')
    expect(values).to_have_text(['2.0 ms', '0.5 ms', '12 ms', re.compile(r'^[\d.]+ ms$'), '3'])


def test_pictures_can_be_dropped(page, expect):
    files = part('one.png'), part('two.png')
    page.dispatch_event('#zone', 'dragover', {'dataTransfer': carrying(page, *files)})
    expect(page.locator('body')).to_have_class('dragging')
    page.dispatch_event('#zone', 'drop', {'dataTransfer': carrying(page, *files)})
    expect(page.locator('[data-state=done] .file b')).to_have_text(['one.png', 'two.png'])
    expect(page.locator('.photo img')).to_have_count(2)
    assert page.locator('.photo img').first.get_attribute('alt') == 'The picture one.png'


def test_pictures_can_be_pasted(page, expect):
    page.evaluate(
        'data => document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }))',
        carrying(page, part('image.png')),
    )
    expect(page.locator('[data-state=done] .file b')).to_have_text('image.png')


def test_dropped_link_is_not_followed(page, expect):
    expect(page.locator('#hint')).to_contain_text('Each up to')
    stayed = page.evaluate(
        """() => {
          const dataTransfer = new DataTransfer();
          dataTransfer.setData('text/uri-list', 'https://example.org/');
          const drop = new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true });
          document.body.dispatchEvent(drop);
          return drop.defaultPrevented;
        }"""
    )
    assert stayed
    expect(page.locator('#hint')).to_contain_text('No file')


def test_thumbnail_is_upright_and_shows_what_the_network_sees(visit, expect):
    """Left half red, right half blue; stored rotated, with its EXIF orientation."""

    def shrunk(route):
        about = route.fetch().json()
        route.fulfill(json={**about, 'input': {'size': 24, 'resize': 32}})

    page = visit(lambda page: page.route('**/about', shrunk))
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, :50, 0] = pixels[:, 50:, 2] = 255
    pixels[:, :27] = pixels[:, 73:] = (0, 255, 0)  # outside the 45 x 45 in the middle
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(file, 'JPEG', quality=100, subsampling=0, exif=exif)
    give(page, part('upright.jpg', file.getvalue()))
    expect(page.locator('.file span')).to_have_text('100 \u00d7 60')
    shot = page.locator('.photo img')
    expect(shot).to_be_visible()
    shown = page.evaluate(
        """async () => {
          const image = document.querySelector('.photo img');
          await image.decode();
          const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
          const context = canvas.getContext('2d', { willReadFrequently: true });
          context.drawImage(image, 0, 0);
          const at = (x) => [...context.getImageData(x, 22, 1, 1).data].slice(0, 3);
          return [canvas.width, canvas.height, at(2), at(18), at(27), at(42)];
        }"""
    )
    assert shown[:2] == [45, 45]
    red, blue = [255, 0, 0], [0, 0, 255]
    for pixel, colour in zip(shown[2:], [red, red, blue, blue]):
        assert pixel == pytest.approx(colour, abs=40)


def test_file_that_is_not_a_picture_fails_alone_without_retry(page, expect):
    with page.expect_response(lambda reply: reply.status == 400) as caught:
        give(page, part('notes.heic', b'not a picture'), part('fine.png'))
    expect(page.locator('[data-state=done]')).to_have_count(1)
    assert caught.value.json() == {'error': 'the body is not a picture'}
    note = page.locator('[data-state=failed] .note')
    expect(note).to_have_text('This file is not a picture.')
    expect(page.locator('.retry:visible')).to_have_count(0)
    expect(page.locator('#summary')).to_have_text('2 pictures · 1 failed')
    expect(page.locator('#log')).to_contain_text('notes.heic: ')


@pytest.mark.parametrize(
    ('limits', 'text'),
    [
        (
            {'bytes': 2**16, 'pixels': 10**6},
            'This file has 0.115 MiB; the server takes up to 0.0625 MiB.',
        ),
        (
            {'bytes': 2**20, 'pixels': 10_000},
            'This picture has 0.04 megapixels; the server takes up to 0.01 megapixels.',
        ),
    ],
)
def test_pictures_over_the_limits_are_not_sent(visit, expect, limits, text):
    sent = []

    def less(route):
        route.fulfill(json={**route.fetch().json(), 'limits': limits})

    page = visit(lambda page: page.route('**/about', less))
    page.on('request', lambda request: sent.append(request.url))
    give(page, part('large.png', picture(200, 200)))
    expect(page.locator('[data-state=failed] .note')).to_have_text(text)
    expect(page.locator('.retry:visible')).to_have_count(0)
    assert not [url for url in sent if 'classify' in url]


def test_busy_server_is_asked_again_after_retry_after(page, expect):
    page.route('**/classify*', refuse(503, 'busy', **{'Retry-After': '1'}), times=1)
    give(page, part('a.png'))
    expect(page.locator('.note')).to_have_text('Server busy; again in 1\u00a0s (1 of 5)')
    expect(page.locator('[data-state=done]')).to_have_count(1)


def test_server_that_stays_busy_is_asked_six_times(visit, expect):
    page = visit(lambda page: page.clock.install(time=0))
    page.clock.pause_at(3_600_000)
    asked = []
    busy = refuse(503, 'busy: 64 pictures wait', **{'Retry-After': '30'})
    page.route('**/classify*', lambda route: (asked.append(route), busy(route)))
    give(page, part('a.png'))
    for time in range(1, 6):
        expect(page.locator('.note')).to_have_text(f'Server busy; again in 30\u00a0s ({time} of 5)')
        page.clock.run_for(29_000)
        expect(page.locator('.note')).to_have_text(f'Server busy; again in 1\u00a0s ({time} of 5)')
        assert len(asked) == time
        page.clock.run_for(1_000)
    expect(page.locator('[data-state=failed] .note')).to_have_text('Busy: 64 pictures wait.')
    assert len(asked) == 6
    page.unroute('**/classify*')
    page.click('.retry')
    expect(page.locator('[data-state=done]')).to_have_count(1)


@pytest.mark.parametrize(
    ('handler', 'text'),
    [
        (lambda route: route.abort(), 'The server cannot be reached.'),
        (lambda route: route.fulfill(status=502, body='<html>'), 'The server answered 502'),
        (lambda route: route.fulfill(status=200, body='<html>'), 'The server answered 200'),
        (refuse(504, 'waited too long'), 'Waited too long.'),
    ],
)
def test_temporary_errors_offer_a_retry(page, expect, handler, text):
    page.route('**/classify*', handler, times=1)
    give(page, part('a.png'))
    expect(page.locator('[data-state=failed] .note')).to_contain_text(text)
    page.click('.retry')
    expect(page.locator('[data-state=done] .bars li').first).to_be_visible()
    expect(page.locator('.retry')).to_be_hidden()


def test_four_pictures_are_sent_at_a_time(page, expect):
    held = []
    page.route('**/classify*', lambda route: held.append(route))
    give(page, *(part(f'{number}.png') for number in range(7)))
    expect(page.locator('#summary')).to_have_text('7 pictures · 4 under way · 3 waiting')
    page.wait_for_timeout(150)
    assert len(held) == 4
    held[0].fulfill(json=answer())
    expect(page.locator('#summary')).to_have_text('7 pictures · 4 under way · 2 waiting')
    with page.expect_event('requestfailed'):
        page.click('[aria-label="Remove 1.png"]')  # is aborted, and makes room
    expect(page.locator('#summary')).to_have_text('6 pictures · 4 under way · 1 waiting')
    page.click('#clear')
    expect(page.locator('#results')).to_be_hidden()


def test_page_works_with_the_keyboard_alone(visit, expect):
    # A listener that is added when the key is pressed may be too late.
    page = visit(lambda page: page.on('filechooser', lambda chooser: None))
    page.keyboard.press('Tab')
    expect(page.locator('#theme')).to_be_focused()
    page.keyboard.press('Tab')
    expect(page.locator('#picker')).to_be_focused()
    ring = 'getComputedStyle(document.querySelector("#zone label"), "::after").outlineStyle'
    assert page.evaluate(ring) == 'solid'
    with page.expect_file_chooser() as chooser:
        page.keyboard.press('Enter')
    chooser.value.set_files([part('one.png'), part('two.png'), part('three.png')])
    expect(page.locator('[data-state=done]')).to_have_count(3)
    page.keyboard.press('Tab')
    expect(page.locator('#clear')).to_be_focused()
    page.keyboard.press('Tab')
    first = page.locator('.card').first
    expect(first).to_be_focused()
    assert first.evaluate('card => getComputedStyle(card).outlineStyle') == 'solid'
    page.keyboard.press('Delete')
    expect(page.locator('.file b')).to_have_text(['two.png', 'three.png'])
    expect(first).to_be_focused()  # the next one
    page.keyboard.press('Tab')
    expect(page.get_by_label('Remove two.png')).to_be_focused()
    page.keyboard.press('Enter')
    expect(page.locator('.file b')).to_have_text(['three.png'])
    page.keyboard.press('Delete')
    expect(page.locator('.card')).to_have_count(0)
    expect(page.locator('#picker')).to_be_focused()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_contrast_is_sufficient_in_both_themes(visit, expect, scheme):
    page = visit(color_scheme=scheme, reduced_motion='reduce')
    give(page, part('done.png'), part('failed.txt', b'not a picture'))
    expect(page.locator('[data-state=failed]')).to_have_count(1)
    expect(page.locator('[data-state=done]')).to_have_count(1)
    page.route('**/classify*', refuse(504, 'too late'))
    give(page, part('again.png'))
    expect(page.locator('.retry:visible')).to_have_count(1)
    page.unroute('**/classify*')
    page.route('**/classify*', lambda route: None)
    give(page, *(part(f'{number}.png') for number in range(5)))
    expect(page.locator('[data-state=waiting]')).to_have_count(1)
    bright = page.evaluate('getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128')
    assert bright == (scheme == 'light')
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []


def test_chosen_theme_is_remembered(visit, expect):
    page = visit(color_scheme='light')
    background = 'getComputedStyle(document.body).backgroundColor'
    bright = page.evaluate(background)
    page.click('#theme')
    dark = page.evaluate(background)
    assert dark != bright
    page.reload()
    assert page.evaluate(background) == dark
    expect(page.locator('#theme')).to_have_attribute('aria-pressed', 'true')
    page.click('#theme')
    page.reload()
    assert page.evaluate(background) == bright


def test_page_works_without_local_storage(visit, expect):
    forbid = 'Object.defineProperty(window, "localStorage", { get() { throw new Error("no"); } })'
    page = visit(lambda page: page.add_init_script(forbid))
    page.click('#theme')
    expect(page.locator('html')).to_have_attribute('data-theme', 'dark')
    give(page, part('a.png'))
    expect(page.locator('[data-state=done]')).to_have_count(1)


def test_phone_layout_does_not_scroll_sideways(visit, expect):
    page = visit(viewport={'width': 360, 'height': 740}, has_touch=True, is_mobile=True)
    long = 'a' * 80
    names = [{'name': name, 'index': 0, 'probability': 0.2} for name in [long, HOSTILE, long]]
    page.route('**/classify*', lambda route: route.fulfill(json=answer(classes=names)), times=1)
    give(page, part(f'{long}.png'))
    expect(page.locator('[data-state=done]')).to_have_count(1)
    page.route('**/classify*', refuse(400, long), times=1)
    give(page, part('failed.png'))
    expect(page.locator('[data-state=failed]')).to_have_count(1)
    widths = '[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]'
    assert page.evaluate(widths) == [360, 360, 360]
    expect(page.get_by_text('Choose pictures')).to_be_visible()
    expect(page.get_by_text('Take a picture')).to_be_visible()


def test_narrow_screen_breaks_no_words(visit, expect):
    reason = 'the first of openvino, onnxruntime that runs on cpu; openvino: is not installed'

    def prepare(page):
        about = {'reason': reason, 'engine': 'onnxruntime'}
        change = lambda route: route.fulfill(json={**route.fetch().json(), **about})  # noqa: E731
        page.route('**/about', change)

    page = visit(prepare, viewport={'width': 320, 'height': 700})
    texts = ['Siberian husky', 'white wolf, Canis tundrarum', '西伯利亚雪橇犬']
    names = [{'name': name, 'index': 0, 'probability': 0.393} for name in texts]
    page.route('**/classify*', lambda route: route.fulfill(json=answer(classes=names)), times=1)
    give(page, part('a.png'))
    expect(page.locator('.name')).to_have_count(3)
    assert page.evaluate(LINES_OF_WORDS) == dict.fromkeys(' '.join(texts).split(), 1)
    expect(page.locator('#reason')).to_be_hidden()
    page.get_by_text('Why ONNX Runtime').click()
    assert page.locator('#reason li').all_text_contents() == reason.split('; ')


def test_names_are_shown_as_text_not_markup(visit, expect):
    classes = [{'name': HOSTILE, 'index': 0, 'probability': 1.0}]

    def about(route):
        route.fulfill(json={**route.fetch().json(), 'model': HOSTILE, 'reason': HOSTILE})

    page = visit(lambda page: page.route('**/about', about))
    reply = answer(classes=classes, model=HOSTILE)
    page.route('**/classify*', lambda route: route.fulfill(json=reply), times=1)
    give(page, part(f'{HOSTILE}.png'))
    expect(page.locator('.bars .name')).to_have_text(HOSTILE)
    expect(page.locator('.file b')).to_have_text(f'{HOSTILE}.png')
    page.route('**/classify*', refuse(400, HOSTILE), times=1)
    give(page, part('failed.png'))
    expect(page.locator('[data-state=failed] .note')).to_have_text(f'{HOSTILE}.')
    expect(page.locator('#model')).to_have_text(HOSTILE)
    expect(page.locator('img:not(.photo img)')).to_have_count(0)


def test_reduced_motion_stops_animations(visit, expect):
    moves = 'getComputedStyle(document.querySelector(".bar i")).animationName'
    for wish, name in (('reduce', 'none'), ('no-preference', 'grow')):
        page = visit(reduced_motion=wish)
        give(page, part('a.png'))
        expect(page.locator('[data-state=done]')).to_have_count(1)
        assert page.evaluate(moves) == name


def test_page_without_javascript_shows_the_curl_command(visit, expect):
    page = visit(java_script_enabled=False)
    code = page.locator('noscript code')
    expect(code).to_be_visible()
    expect(code).to_contain_text('curl --data-binary @picture.jpg')
    expect(page.locator('#zone')).to_be_hidden()
