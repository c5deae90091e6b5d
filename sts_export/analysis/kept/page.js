"use strict";

const SVG = "http://www.w3.org/2000/svg";
const STAGES = ["all tokens", "after stage 1, before the LLM", "after stage 2, inside the LLM"];
const FATES = ["dropped before the LLM", "dropped inside the LLM", "kept", "merged before the LLM"];

const slider = document.getElementById("stage");

function showStage() {
  document.body.dataset.stage = slider.value;
  document.getElementById("stage-name").textContent = STAGES[slider.value];
  slider.setAttribute("aria-valuetext", STAGES[slider.value]);
}

// Says of one token of a picture what became of it, and draws lines between those that were merged.
function watch(svg) {
  const columns = Number(svg.dataset.columns);
  const fates = svg.dataset.fates;
  const into = new Map(svg.dataset.merged.split(" ").filter(Boolean).map((pair) => pair.split(">").map(Number)));
  const said = svg.parentElement.querySelector(".said");
  const add = (name, kind) => {
    const made = svg.appendChild(document.createElementNS(SVG, name));
    made.setAttribute("class", kind);
    return made;
  };
  const ends = add("path", "ends");
  const cursor = add("path", "cursor");
  let current = -1;

  const row = (token) => Math.floor(token / columns);
  const place = (token) => `row ${row(token) + 1}, column ${token % columns + 1}`;
  const centre = (token) => `${token % columns + .5} ${row(token) + .5}`;

  function point(token) {
    if (token === current) return;
    current = token;
    const sources = [...into].filter(([, target]) => target === token).map(([source]) => source);
    const lines = into.has(token) ? [[token, into.get(token)]] : sources.map((source) => [source, token]);
    cursor.setAttribute("d", token < 0 ? "" : `M${token % columns} ${row(token)}h1v1h-1z`);
    ends.setAttribute("d", lines.map(([from, to]) => `M${centre(from)}L${centre(to)}`).join(""));
    if (token < 0) said.textContent = "";
    else if (into.has(token)) said.textContent = `${place(token)}: merged into ${place(into.get(token))}`;
    else said.textContent = `${place(token)}: ${FATES[fates[token]]}` + (sources.length ? `; ${sources.length} merged into it` : "");
  }

  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const token = Math.floor(at.y) * columns + Math.floor(at.x);
    point(at.x >= 0 && at.x < columns && token >= 0 && token < fates.length ? token : -1);
  });
  svg.addEventListener("pointerleave", () => point(-1));
  svg.addEventListener("blur", () => point(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = current < 0 ? 0 : current + step;
    if (next >= 0 && next < fates.length) point(next);
  });
}

slider.addEventListener("input", showStage);
document.querySelectorAll("svg.tokens").forEach(watch);
document.querySelector(".slider").hidden = false;
showStage();
