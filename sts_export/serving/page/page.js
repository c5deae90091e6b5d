// The page's state, and what its controls do.

import { ask, oneLine, ServerError, waitForInfo } from "./chat.js";
import { chooseView, drawKept, isCut } from "./kept.js";
import { PictureError, readExample, readPicture, watchTransfers } from "./pictures.js";
import { budgetInWords, fillTable, tokensInWords } from "./table.js";

const MOST_PICTURES = 4;
const BETWEEN_STAGES = 900; // milliseconds that stage 1 is shown alone

const at = (id) => document.getElementById(id);
const [chat, question, budget, stageRadios] = [at("chat"), at("question"), at("budget"), document.getElementsByName("stage")];
const still = matchMedia("(prefers-reduced-motion: reduce)");

let info = { model: "", budgets: [], max_pictures: MOST_PICTURES, examples: [] };
// A turn is a question with its pictures and its answers, the runs; `shown` is the run that chat and pictures show.
let turns = [];
let waiting = []; // pictures of the next question
let answering = null; // AbortController
let later = 0; // timer of stage 2

const last = () => turns.at(-1);
const pictures = () => [...turns.flatMap((turn) => turn.pictures), ...waiting];
const most = () => Math.min(MOST_PICTURES, info.max_pictures ?? MOST_PICTURES);

function made(name, kind, text = "") {
  const element = document.createElement(name);
  element.className = kind;
  element.textContent = text;
  return element;
}

function fail(error) {
  if (!(error instanceof ServerError || error instanceof PictureError)) console.error(error);
  at("error").textContent = oneLine(error.message);
}

function say(text) {
  at("said").textContent = text;
}

// Pictures

function showPictures() {
  const figures = pictures().map((picture, place) => {
    const figure = made("figure", "");
    const frame = figure.appendChild(made("div", "frame"));
    frame.style.setProperty("--ratio", picture.ratio);
    const shown = frame.appendChild(new Image());
    Object.assign(shown, { src: picture.url, alt: picture.name });
    const caption = figure.appendChild(made("figcaption", ""));
    caption.append(made("span", "", picture.name));
    if (waiting.includes(picture)) {
      const remove = caption.appendChild(made("button", "", "Remove"));
      Object.assign(remove, { type: "button", ariaLabel: `Remove ${picture.name}` });
      remove.addEventListener("click", () => removePicture(picture));
    }
    figure.dataset.place = place;
    return figure;
  });
  at("pictures").replaceChildren(...figures);
  at("empty").hidden = figures.length > 0;
  for (const button of at("examples").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(pictures().some((picture) => picture.example === button.dataset.name)));
  }
  at("examples-title").textContent = turns.length ? "Examples; each begins a new chat" : "Examples";
  showKept();
}

function removePicture(picture) {
  waiting = waiting.filter((other) => other !== picture);
  showPictures();
  say(`${picture.name} removed`);
  question.focus();
}

async function addFiles(files) {
  at("error").textContent = "";
  for (const file of files) {
    try {
      const picture = await readPicture(file);
      if (pictures().length >= most()) {
        const many = most() === 1 ? "one picture" : `${most()} pictures`;
        throw new PictureError(`at most ${many} in a chat; remove one, or begin a new chat`);
      }
      waiting.push(picture);
      say(`${picture.name} added`);
    } catch (error) {
      fail(error);
      break;
    }
  }
  showPictures();
}

async function toggleExample(example) {
  at("error").textContent = "";
  const known = waiting.find((picture) => picture.example === example.name);
  if (known) return removePicture(known);
  try {
    const picture = await readExample(example);
    if (turns.length) newChat();
    if (waiting.length >= most()) waiting.pop();
    waiting.push(picture);
    say(`${picture.name} added`);
  } catch (error) {
    fail(error);
  }
  showPictures();
}

// Kept tokens

function showStage(stage) {
  document.body.dataset.stage = stage;
  for (const radio of stageRadios) radio.checked = radio.value === String(stage);
}

function showKept() {
  const run = last()?.shown;
  const kept = run?.kept ?? [];
  at("kept").hidden = kept.length === 0;
  for (const old of document.querySelectorAll(".frame .tokens")) old.remove();
  const figures = at("pictures").children;
  kept.forEach((picture, place) => {
    figures[place]?.querySelector(".frame").append(drawKept(picture, at("overview").checked));
  });
  at("overview-field").hidden = !kept.some((picture) => picture.views.length > 1);
  at("outside-legend").hidden = !kept.some((picture) => isCut([chooseView(picture.views, at("overview").checked)]));
  at("counts").replaceChildren(...countsOf(run, kept));
}

function countsOf(run, kept) {
  const sum = (count) => kept.reduce((total, picture) => total + count(picture), 0);
  const early = {
    total: sum((picture) => picture.views.reduce((total, view) => total + view.rows * view.columns, 0)),
    stage1: sum((picture) => picture.stage1.length),
    stage2: sum((picture) => picture.stage2.length),
  };
  const { total, stage1, stage2 } = run?.visual ?? early;
  const spans = [total, stage1, stage2].flatMap((count, stage) => [stage ? " → " : "", made("span", `n${stage}`, String(count))]);
  return [...spans, " visual tokens"];
}

// Stage 1 first, so that one sees both; at once where motion is not wanted.
function lightUp() {
  clearTimeout(later);
  if (still.matches) return showStage(2);
  showStage(1);
  later = setTimeout(() => showStage(2), BETWEEN_STAGES);
}

// Chat

function messagesOf(turn) {
  const before = turns.slice(0, turns.indexOf(turn)).flatMap((earlier) => [
    userMessage(earlier),
    { role: "assistant", content: earlier.shown.text },
  ]);
  return [...before, userMessage(turn)];
}

function userMessage(turn) {
  const images = turn.pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.url } }));
  return { role: "user", content: [...images, { type: "text", text: turn.question }] };
}

function newTurn(text) {
  const box = made("article", "turn");
  const asked = box.appendChild(made("p", "asked", text));
  const answer = box.appendChild(made("p", "answer"));
  const facts = box.appendChild(made("p", "facts"));
  asked.dir = answer.dir = "auto";
  chat.append(box);
  at("hint").hidden = true;
  return { question: text, pictures: [], runs: [], shown: null, box, answer, facts };
}

function showRun(turn, run) {
  turn.shown = run;
  turn.answer.textContent = run.text.trimStart();
  const parts = [
    run.budget && `budget ${budgetInWords(run.budget)}`,
    run.visual && `${tokensInWords(run.visual)} visual tokens`,
    run.isStopped && "stopped",
  ];
  turn.facts.textContent = parts.filter(Boolean).join(" · ");
  chat.scrollTop = chat.scrollHeight;
}

function showMeasured() {
  const turn = last();
  const runs = turn?.runs.filter((run) => !run.isStopped) ?? [];
  at("measured").hidden = runs.length === 0;
  if (runs.length) fillTable(at("measured").querySelector("table"), runs, turn.shown, chooseRun, info);
}

function chooseRun(run) {
  clearTimeout(later);
  showRun(last(), run);
  showKept();
  showStage(2);
  showMeasured();
  at("measured").querySelector("[aria-pressed=true]")?.focus();
}

function showState() {
  const busy = answering !== null;
  at("stop").hidden = !busy;
  at("send").disabled = busy;
  at("again").disabled = busy || turns.length === 0;
  const picked = info.budgets[budget.value];
  at("again").textContent = picked ? `Ask again at ${budgetInWords(picked)}` : "Ask again";
  chat.setAttribute("aria-busy", String(busy));
}

async function answer(turn) {
  const controller = answering = new AbortController();
  const rank = Number(budget.value);
  const run = { budget: info.budgets[rank], rank, text: "", visual: null, timings: null, kept: [], isStopped: false };
  const before = turn.shown;
  const body = {
    model: info.model, messages: messagesOf(turn), stream: true, stream_options: { include_usage: true }, return_kept: true,
    ...run.budget && { budget: run.budget },
  };
  at("error").textContent = "";
  turn.answer.setAttribute("aria-busy", "true");
  clearTimeout(later);
  showRun(turn, run);
  showStage(0);
  showKept();
  showState();
  let failure = null;
  try {
    for await (const chunk of ask(body, at("key").value.trim(), controller.signal)) take(chunk, turn, run);
  } catch (error) {
    failure = error;
  }
  if (answering !== controller) return; // another chat began
  answering = null;
  turn.answer.removeAttribute("aria-busy");
  run.isStopped = failure !== null;
  if (failure && failure.name !== "AbortError") fail(failure);
  if (failure && (run.text === "" || before)) giveUp(turn, before);
  else {
    turn.runs.push(run);
    showRun(turn, run);
  }
  showMeasured();
  showState();
  say(failure ? "Stopped" : "Answered");
}

function take(chunk, turn, run) {
  if (turn.shown !== run) return;
  const piece = chunk.choices?.[0]?.delta?.content;
  if (piece) {
    run.text += piece;
    showRun(turn, run);
  }
  if (chunk.usage?.visual_tokens) run.visual = chunk.usage.visual_tokens;
  if (chunk.sts?.timings_ms) run.timings = comparable(chunk.sts.timings_ms, chunk.usage);
  if (chunk.sts?.pictures?.length) {
    const isFirst = run.kept.length === 0;
    run.kept = chunk.sts.pictures;
    showKept();
    if (isFirst) lightUp();
  }
}

// Times as if the question were the first about its pictures: what the server had kept of them is no merit of a budget.
function comparable(timings, usage) {
  const saved = (timings.vision_saved ?? 0) + (timings.select_saved ?? 0);
  const isCached = usage?.prompt_tokens_details?.cached_tokens > 0; // of the prompt: what it took is not known any more
  return { ...timings, first_token: isCached ? NaN : timings.first_token + saved };
}

// Back to the answer before, or to the question if there is none.
function giveUp(turn, before) {
  if (before) {
    showRun(turn, before);
    showKept();
    showStage(before.kept.length ? 2 : 0);
    return;
  }
  turn.box.remove();
  turns = turns.filter((other) => other !== turn);
  waiting = [...turn.pictures, ...waiting];
  if (!question.value) question.value = turn.question;
  at("hint").hidden = turns.length > 0;
  showPictures();
}

function send() {
  const text = question.value.trim();
  if (answering || !text) return;
  const turn = newTurn(text);
  turn.pictures = waiting;
  waiting = [];
  turns.push(turn);
  question.value = "";
  showPictures();
  showMeasured();
  answer(turn);
}

function stop() {
  answering?.abort();
  question.focus();
}

function newChat() {
  const running = answering;
  answering = null;
  running?.abort();
  clearTimeout(later);
  for (const turn of turns) turn.box.remove();
  [turns, waiting] = [[], []];
  at("hint").hidden = false;
  at("error").textContent = "";
  showStage(0);
  showPictures();
  showMeasured();
  showState();
}

// Budget

function showBudget() {
  const picked = info.budgets[budget.value];
  const said = budgetInWords(picked);
  at("budget-said").textContent = said;
  budget.setAttribute("aria-valuetext", picked?.endsWith("%") ? `${said} of the visual tokens` : `${said} visual tokens`);
  showState();
}

function useInfo(given) {
  info = { ...info, ...given };
  at("error").textContent = "";
  at("model").textContent = info.model;
  document.title = info.model ? `${info.model} – sts-export` : "sts-export";
  at("key-field").hidden = !info.key;
  at("budget-field").hidden = info.budgets.length === 0;
  budget.max = Math.max(0, info.budgets.length - 1);
  const own = info.budgets.indexOf(info.budget);
  budget.value = own < 0 ? budget.max : own;
  at("files").multiple = most() > 1;
  at("examples-field").hidden = info.examples.length === 0;
  at("examples").replaceChildren(...info.examples.map((example) => {
    const button = made("button", "");
    Object.assign(button, { type: "button", ariaPressed: "false" });
    button.dataset.name = example.name;
    Object.assign(button.appendChild(new Image()), { src: example.src, alt: `Example ${example.name}` });
    button.addEventListener("click", () => toggleExample(example));
    const item = made("li", "");
    item.append(button);
    return item;
  }));
  showBudget();
}

// Controls

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("again").addEventListener("click", () => answering || answer(last()));
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", () => {
  newChat();
  question.focus();
});
budget.addEventListener("input", showBudget);
at("overview").addEventListener("change", showKept);
for (const radio of stageRadios) {
  radio.addEventListener("change", () => {
    clearTimeout(later);
    showStage(radio.value);
  });
}
at("files").addEventListener("change", async () => {
  const files = [...at("files").files];
  at("files").value = ""; // the same file can be chosen again
  await addFiles(files);
  question.focus();
});
watchTransfers(addFiles);

showBudget();
waitForInfo(fail).then(useInfo).catch(fail);
