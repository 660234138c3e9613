"""How a response was unmasked, to look at: on the terminal while it happens, and as one HTML page that plays it.

Tokens are coloured by the confidence with which they were written, from red (0) over yellow to green (1).
"""

import colorsys
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from vrpo.decoding.decode import Generation
from vrpo.decoding.flight import Flight
from vrpo.decoding.visible import visible

HIDDEN = "░"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token alone; its number without a tokenizer. A character that several tokens share is not whole in any."""
    if tokenizer is None:
        return [f"{token} " for token in ids]
    return [str(tokenizer.decode([token])) for token in ids]


def hue(confidence: float) -> float:
    """Degrees: 0 is red, 120 green."""
    return 120 * min(max(confidence, 0.0), 1.0)


def in_colour(tokenizer: Any, flight: Flight, row: int) -> Text:
    """The response of one row in flight for a terminal."""
    hidden = (flight.canvas.response[row] == flight.canvas.mask_id).tolist()
    texts = token_texts(tokenizer, flight.canvas.response[row].tolist())
    found = Text()
    for text, mask, confidence in zip(texts, hidden, flight.confidence[row].tolist(), strict=True):
        if mask:
            found.append(HIDDEN, style="dim")
        else:
            red, green, blue = (int(255 * part) for part in colorsys.hls_to_rgb(hue(confidence) / 360, 0.6, 0.75))
            found.append(visible(text), style=f"rgb({red},{green},{blue})")
    return found


def write_trace(
    path: Path, tokenizer: Any, generations: Sequence[Generation], prompts: Sequence[str], mask_id: int
) -> None:
    """One self-contained page that plays how each response was written."""
    rows = [
        {
            "prompt": prompt,
            "nfe": generation.nfe,
            "tokens": [
                [text, call if token != mask_id else 0, round(hue(confidence)), round(confidence, 4)]
                for text, token, call, confidence in zip(
                    token_texts(tokenizer, generation.ids),
                    generation.ids,
                    generation.written,
                    generation.confidence,
                    strict=True,
                )
            ],
        }
        for generation, prompt in zip(generations, prompts, strict=True)
    ]
    # no "<" in the script: "</script" would end it, "<!--<script" keep it from ending
    data = json.dumps(rows, allow_nan=False).replace("<", "\\u003c")
    page = _PAGE.replace("{{hidden}}", html.escape(HIDDEN)).replace("{{rows}}", data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>vrpo generate: how the text was unmasked</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#ddd, #333); --dim: light-dark(#767676, #999); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
#bar { position: sticky; top: 0; background: Canvas; padding: .6rem 0; display: flex; gap: .8rem; align-items: center;
  border-bottom: 1px solid var(--line); }
#bar input { flex: 1; }
article { border-bottom: 1px solid var(--line); padding: 1rem 0; }
.prompt { color: var(--dim); white-space: pre-wrap; }
.text { font-family: ui-monospace, monospace; white-space: pre-wrap; margin-top: .5rem; }
.text span { border-radius: 3px; }
.text .hidden { color: var(--dim); }
.text .new { outline: 2px solid currentColor; }
.key { display: inline-block; width: 7rem; height: .8rem; border-radius: 3px;
  background: linear-gradient(90deg, hsl(0 80% 75%), hsl(60 80% 75%), hsl(120 80% 75%)); }
</style></head><body>
<h1>How the text was unmasked</h1>
<p>Confidence when a token was written: 0 <span class="key"></span> 1. {{hidden}} is still hidden. Point at a token for
its call and confidence.</p>
<div id="bar"><button id="play">Play</button><input id="step" type="range" min="0" aria-label="model call">
<output id="at"></output></div>
<main></main>
<script>
const rows = {{rows}};
const last = Math.max(0, ...rows.map(row => row.nfe));
const [step, at, play] = ["step", "at", "play"].map(id => document.getElementById(id));
step.max = last; step.value = last;
const spans = [];
for (const row of rows) {
  const article = document.createElement("article"), prompt = document.createElement("div");
  const text = document.createElement("div");
  prompt.className = "prompt"; prompt.textContent = row.prompt; text.className = "text";
  for (const [token, call, hue, confidence] of row.tokens) {
    const span = document.createElement("span");
    span.title = call ? `call ${call}, confidence ${confidence}` : "not written by a call";
    spans.push({span, token, call, hue, end: row.nfe});
    text.append(span);
  }
  article.append(prompt, text);
  document.querySelector("main").append(article);
}
function show(now) {
  for (const {span, token, call, hue, end} of spans) {
    const there = call ? call <= now : now >= end;
    span.textContent = there ? token : "{{hidden}}";
    span.className = there ? (call === now ? "new" : "") : "hidden";
    span.style.background = there && call ? `hsl(${hue} 80% 75%)` : "";
    span.style.color = there && call ? "#111" : "";
  }
  at.textContent = `call ${now} of ${last}`;
}
let timer = null;
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
step.oninput = () => { stop(); show(Number(step.value)); };
play.onclick = () => {
  if (timer) return stop();
  if (Number(step.value) >= last) { step.value = 0; show(0); }
  play.textContent = "Pause";
  timer = setInterval(() => {
    step.value = Number(step.value) + 1; show(Number(step.value));
    if (Number(step.value) >= last) stop();
  }, Math.max(30, Math.min(250, 8000 / (last || 1))));
};
show(last);
</script></body></html>
"""
