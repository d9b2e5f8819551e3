"""Downloads that can be interrupted: progress, resuming, MD5, several mirrors."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Sequence

from tqdm import tqdm

from engine.console import can_redraw

CHUNK = 1 << 20


def download(urls: Sequence[str], target: Path, *, md5: str, timeout_s: float = 20.0) -> None:
    """Fetch the first of `urls` that delivers a file of that MD5 into `target`.

    The bytes go to `target` + '.part', which a later call continues, and are renamed when they
    verify. Raises OSError with each address's problem when none delivers.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'{target.name}.part')
    problems = []
    for url in urls:
        try:
            if part.exists():
                _continue(url, part, md5, timeout_s)
            else:
                _fetch(url, part, timeout_s)
                _verify(part, md5)
        except (OSError, http.client.HTTPException) as error:
            problems.append(_describe(url, error))
            continue
        os.replace(part, target)
        return
    raise OSError('; '.join(problems) or 'no address to download from')


def _describe(url: str, error: Exception) -> str:
    """Who failed, and how: with a proxy in between, what fails before an answer is the proxy."""
    address = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    text = str(getattr(error, 'reason', None) or error)
    if isinstance(error, urllib.error.HTTPError):
        text = f'{error.code} {text}'
    if not proxy or urllib.request.proxy_bypass(address.hostname or ''):
        return f'{url}: {text}'
    where = proxy.rpartition('//')[2].rpartition('@')[2].rstrip('/')  # without its password
    named = f'the proxy {where} ({address.scheme}_proxy)'
    answered = isinstance(error, urllib.error.HTTPError) and error.code != 407
    if answered or not isinstance(error, urllib.error.URLError):
        return f'{url}, through {named}: {text}'
    return f'{named} does not lead to {url}: {text}'


def _continue(url: str, part: Path, md5: str, timeout_s: float) -> None:
    """Fetch the rest; where that does not verify, its beginning was of another file: fetch all."""
    _fetch(url, part, timeout_s)
    try:
        _verify(part, md5)
    except OSError:
        _fetch(url, part, timeout_s)
        _verify(part, md5)


def _fetch(url: str, part: Path, timeout_s: float) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={done}-'} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if done and error.code == 416:  # nothing is left to fetch: the MD5 decides
            return
        raise
    with response:
        if response.status != 206:  # the server starts from the beginning
            done = 0
        length = response.headers.get('Content-Length')
        total = done + int(length) if length else None
        seconds = 1.0 if can_redraw(sys.stderr) else 30.0  # else every state of it stays
        bar = tqdm(
            total=total,
            initial=done,
            unit='B',
            unit_scale=True,
            desc=part.stem,
            mininterval=seconds,
        )
        with bar, part.open('ab' if done else 'wb') as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise OSError(f'the connection broke after {part.stat().st_size:,} of {total:,} bytes')


def md5_of(path: Path) -> str:
    """The MD5 of a file, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _verify(part: Path, md5: str) -> None:
    found = md5_of(part)
    if found != md5:
        part.unlink()  # nothing of it can be trusted, so the next try starts anew
        raise OSError(f'MD5 is {found}, not {md5}')
