"use strict";
const episodes = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const list = document.getElementById("list");

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  for (const child of children) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

function tone(status) {
  return status === "answered" ? "good" : status === "failed" ? "bad" : "warn";
}

function shade(logprob) {
  const p = Math.exp(logprob);
  return `background: color-mix(in srgb, #d9480f ${Math.round(60 * (1 - p))}%, transparent)`;
}

function tokens(turn) {
  if (!turn.tokens || !turn.tokens.length) return null;
  const box = el("div", { class: "tokens" });
  for (const [text, logprob] of turn.tokens) {
    const span = el("span", {}, text);
    if (logprob !== null) {
      span.setAttribute("style", shade(logprob));
      span.title = `p = ${Math.exp(logprob).toFixed(3)}`;
    }
    box.append(span);
  }
  return el("details", {}, el("summary", {}, `${turn.tokens.length} tokens by probability`), box);
}

function observation(seen, omitted) {
  if (!seen) return null;
  const box = el("div", {});
  for (const source of seen.sources) {
    const title = el("span", omitted ? { class: "omitted" } : {}, `[${source.number}] ${source.title}`);
    box.append(el("details", {}, el("summary", {}, title, el("span", { class: "soft" }, `  ${source.id}`)), el("pre", {}, source.text)));
  }
  if (omitted) box.append(el("p", { class: "soft" }, "Judged unhelpful: left out of what the policy saw next."));
  if (seen.verdict) box.append(el("span", { class: `badge ${seen.verdict === "yes" ? "good" : "bad"}` }, `helps: ${seen.verdict}`));
  if (seen.error) box.append(el("p", { class: "bad" }, seen.error));
  else if (!seen.sources.length && seen.text) box.append(el("pre", {}, seen.text));
  if (seen.truncated) box.append(el("p", { class: "soft" }, "Cut to the output cap."));
  return box;
}

function covered(spans, span) {
  return spans.some(([a, b]) => a <= span[0] && span[1] <= b);
}

function turnView(episode, turn, index, longest) {
  const action = turn.action;
  const name = action.name || action.kind;
  const values = Object.values(action.arguments).join(", ");
  const next = episode.turns[index + 2];
  const span = turn.observation_span;
  const omitted = Boolean(next && turn.observation && turn.observation.sources.length && span[1] > span[0] && !covered(next.context, span));
  const bar = el("div", { class: "bar", role: "img", "aria-label": "time" },
    el("div", { class: "policy", style: `width:${(100 * turn.policy_seconds) / longest}%` }),
    el("div", { class: "tool", style: `width:${(100 * turn.tool_seconds) / longest}%` }));
  return el("section", { class: "turn", tabindex: "0", "aria-label": `Turn ${index + 1}` },
    el("h2", { class: action.kind === "malformed" ? "bad" : "" }, `${index + 1}. ${name}${values ? ": " + values : ""}`),
    el("div", { class: "soft" }, `policy ${turn.policy_seconds.toFixed(2)} s, tool ${turn.tool_seconds.toFixed(3)} s, prompt ${turn.prompt_tokens} tokens, reply ${turn.reply_tokens} tokens` +
      (turn.forced ? ", forced: a budget was spent" : "") + (turn.sampled ? "" : ", written by a script")),
    bar,
    action.thought ? el("pre", { class: "soft" }, action.thought) : null,
    turn.reasoning ? el("details", {}, el("summary", {}, "reasoning"), el("pre", {}, turn.reasoning)) : null,
    action.text ? el("pre", {}, action.text) : null,
    observation(turn.observation, omitted),
    tokens(turn),
    el("details", {}, el("summary", { class: "soft" }, "reply as written"), el("pre", {}, turn.text)));
}

function sources(episode) {
  const cited = episode.sources.filter((s) => episode.citations.includes(s.number));
  const box = el("div", {});
  for (const s of cited) box.append(el("details", { open: "" }, el("summary", {}, `[${s.number}] ${s.title}`), el("pre", {}, s.text), el("div", { class: "soft" }, [s.id, s.origin].filter(Boolean).join(" · "))));
  return box;
}

function facts(episode) {
  const rows = [["policy", episode.policy], ["seed", episode.seed], ["stopped by", episode.stop_reason], ["seconds", episode.seconds.toFixed(2)],
    ["confidence", episode.confidence === null ? "unknown" : episode.confidence.toFixed(3)], ["id", episode.id], ["created", episode.created],
    ...Object.entries(episode.rewards).map(([k, v]) => [`reward ${k}`, v]), ...Object.entries(episode.versions).map(([k, v]) => [`version ${k}`, v])];
  const table = el("table", {});
  for (const [key, value] of rows) table.append(el("tr", {}, el("th", { scope: "row", class: "soft" }, key), el("td", {}, value)));
  return el("details", {}, el("summary", {}, "details"), table);
}

function show(index) {
  const episode = episodes[index];
  main.replaceChildren();
  const longest = Math.max(1e-9, ...episode.turns.map((t) => t.policy_seconds + t.tool_seconds));
  main.append(el("h1", {}, episode.task.question),
    el("div", {}, el("span", { class: `badge ${tone(episode.status)}` }, episode.status), el("span", { class: "meta" }, `${episode.policy} · ${episode.turns.length} turns`)),
    el("p", { class: "answer" }, episode.answer ? `${episode.answer} ${episode.citations.map((n) => `[${n}]`).join("")}` : "no answer"),
    episode.error ? el("p", { class: "bad" }, episode.error) : null, sources(episode), facts(episode));
  episode.turns.forEach((turn, number) => main.append(turnView(episode, turn, number, longest)));
  main.append(el("details", {}, el("summary", { class: "soft" }, "raw JSON"), el("pre", {}, JSON.stringify(episode, null, 1))));
  for (const button of list.querySelectorAll("button")) button.setAttribute("aria-current", String(Number(button.dataset.index) === index));
}

function fill(text) {
  list.replaceChildren();
  episodes.forEach((episode, index) => {
    const hay = `${episode.task.question} ${episode.answer} ${episode.status}`.toLowerCase();
    if (!hay.includes(text.toLowerCase())) return;
    const button = el("button", { type: "button", "data-index": index }, episode.task.question, el("div", { class: `meta ${tone(episode.status)}` }, `${episode.status}: ${episode.answer}`));
    button.addEventListener("click", () => show(index));
    list.append(el("li", {}, button));
  });
}

document.getElementById("filter").addEventListener("input", (event) => fill(event.target.value));
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || !["j", "k"].includes(event.key)) return;
  const turns = [...document.querySelectorAll(".turn")];
  const at = turns.indexOf(document.activeElement);
  const next = turns[event.key === "j" ? Math.min(at + 1, turns.length - 1) : Math.max(at - 1, 0)];
  if (next) next.focus();
});
document.body.classList.toggle("single", episodes.length < 2);
function linked() {
  return Math.max(0, episodes.findIndex((episode) => `#${episode.id}` === location.hash));
}

window.addEventListener("hashchange", () => show(linked()));
fill("");
if (episodes.length) show(linked());
