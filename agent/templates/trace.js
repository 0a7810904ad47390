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
  if (seen.data && seen.data.misled) box.append(el("p", { class: "warn" }, `Made to go wrong: withheld ${[].concat(seen.data.misled.withheld || []).join(", ") || "nothing that it would have shown"}.`));
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
    creditLine(episode.credit, index),
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

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "\u2013";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size < 1e-12) return "0";
  return size < 1e-3 ? value.toExponential(2) : value.toFixed(digits);
}

function signed(value) {
  return (value > 0 ? "+" : "") + number(value);
}

function creditColumns(credit) {
  const columns = [["turn", (line) => line.turn + 1]];
  for (const part of credit.parts) columns.push([part.label, (line) => line.parts[part.label]]);
  columns.push(["normalised", (line) => line.reward]);
  const first = credit.turns[0];
  (first ? first.terms : []).forEach((term, at) => {
    const prefix = first.terms.length > 1 ? `${term.name} ` : "";
    const neutral = { returns: null, baseline: null, center: 0, scale: 1, weight: 1 };
    const titles = { returns: "return", weight: "factor" };
    for (const [key, idle] of Object.entries(neutral)) {
      if (idle !== null && credit.turns.every((line) => line.terms[at][key] === idle)) continue;
      columns.push([prefix + (titles[key] || key), (line) => line.terms[at][key]]);
    }
  });
  return [...columns, ["advantage", (line) => line.advantage], ["tokens", (line) => line.tokens],
    ["weight", (line) => line.weight], ["contribution", (line) => line.contribution]];
}

function numbersTable(columns, lines, last) {
  const table = el("table", { class: "numbers" });
  table.append(el("tr", {}, ...columns.map(([title]) => el("th", { scope: "col" }, title))));
  for (const line of lines) table.append(el("tr", {}, ...columns.map(([, cell]) => el("td", {}, number(cell(line))))));
  table.append(el("tr", { class: "sum" }, ...last.map((cell) => el("td", {}, cell === null ? "" : number(cell)))));
  return el("div", { class: "wide" }, table);
}

function turnsTable(credit) {
  const columns = creditColumns(credit);
  const summed = new Set(["normalised", "tokens", "contribution", ...credit.parts.map((part) => part.label)]);
  const last = columns.map(([title, cell], at) => at === 0 ? "sum" : !summed.has(title) ? null
    : credit.turns.reduce((total, line) => total + (cell(line) || 0), 0));
  return numbersTable(columns, credit.turns, last);
}

function rolloutsTable(credit) {
  const columns = [["rollout", (line) => line.id.slice(0, 8) + (line.id === credit.id ? " *" : "")], ["status", (line) => line.status],
    ["reward", (line) => line.reward], ["tokens", (line) => line.tokens], ["contribution", (line) => line.contribution]];
  const total = (key) => credit.rollouts.reduce((sum, line) => sum + line[key], 0);
  return numbersTable(columns, credit.rollouts, ["sum", null, null, total("tokens"), total("contribution")]);
}

function gainCurve(credit) {
  const points = credit.turns.filter((line) => line.gold !== null);
  if (!points.length) return null;
  const width = 360, height = 170, left = 52, right = 12, top = 14, bottom = 26;
  const values = points.map((line) => line.gold);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const most = Math.max(1, points.length - 1);
  const inset = 28; // the first gain is written left of its step
  const x = (at) => left + inset + (at * (width - left - inset - right)) / most;
  const y = (value) => top + ((high - value) * (height - top - bottom)) / span;
  const text = (content, attributes) => svg("text", { "font-size": 11, fill: "currentColor", ...attributes }, content);
  const names = { log_probability: "log-probability (nats a token)", probability: "probability" };
  const what = names[credit.gold_form] || credit.gold_form;
  const drawing = svg("svg", { class: "gain", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "information gain by turn" },
    svg("path", { d: `M${left} ${top}V${height - bottom}H${width - right}`, fill: "none", stroke: "currentColor", "stroke-opacity": 0.4 }),
    ...[...new Set([high, low])].map((value) => text(number(value, 2), { x: left - 6, y: y(value) + 4, "text-anchor": "end" })),
    svg("polyline", { points: points.map((line, at) => `${x(at)},${y(line.gold)}`).join(" "), fill: "none", stroke: "#4c78a8", "stroke-width": 2 }));
  points.forEach((line, at) => {
    const gain = line.information_gain === null ? "" : `; gain ${signed(line.information_gain)}`;
    drawing.append(svg("circle", { cx: x(at), cy: y(line.gold), r: 3.5, fill: "#4c78a8" },
      svg("title", {}, `turn ${line.turn + 1}: ${number(line.gold)}${gain}`)),
      text(String(line.turn + 1), { x: x(at), y: height - bottom + 15, "text-anchor": "middle" }));
    if (at + 1 === points.length) return;
    const falls = line.information_gain < 0;
    drawing.append(text(signed(line.information_gain), { x: (x(at) + x(at + 1)) / 2 + (falls ? 3 : -3), y: (y(line.gold) + y(points[at + 1].gold)) / 2 - 4,
      "text-anchor": falls ? "start" : "end", class: falls ? "bad" : "good" }));
  });
  return el("figure", {}, drawing, el("figcaption", { class: "soft" },
    `Information gain: ${what} of \u201c${credit.gold_answer}\u201d in what each turn saw${credit.scored_by ? `, by ${credit.scored_by}` : ""}. A step up is the gain of the turn before it.`));
}

function receipt(credit) {
  if (!credit) return null;
  const parts = credit.parts.map((part) => `${part.label} = ${part.weight === 1 ? "" : `${part.weight} \u00d7 `}${part.reward}`).join(", ");
  const options = Object.entries(credit.options).map(([key, value]) => ` ${key}=${value}`).join("");
  const box = el("aside", { class: "receipt", "aria-label": "Credit" },
    el("h2", {}, `Credit by ${credit.recipe}`),
    el("p", { class: "soft" }, `${parts}; ${credit.estimator}${options}; ${credit.aggregation}`),
    gainCurve(credit), turnsTable(credit),
    el("p", { class: "soft" }, `This episode adds ${signed(credit.contribution)} to minus the loss; ${credit.rollouts.length} compared (* this one). Loss at ratio 1: ${number(credit.loss)}.`),
    rolloutsTable(credit));
  for (const drop of credit.dropped) box.append(el("p", { class: "soft" }, `Left out: ${drop[0]}: ${drop[1]}`));
  for (const note of credit.notes) box.append(el("p", { class: "soft" }, note));
  return box;
}

function creditLine(credit, index) {
  const line = credit && credit.turns[index];
  if (!line) return null;
  const gain = line.information_gain === null ? "" : `, information gain ${signed(line.information_gain)}`;
  return el("div", { class: "credit" }, "credit: advantage ", el("span", { class: line.advantage < 0 ? "bad" : "good" }, signed(line.advantage)),
    ` \u00d7 ${line.tokens} tokens \u00d7 ${number(line.weight)} = ${signed(line.contribution)}${gain}`);
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
    ...(episode.error ? [el("p", { class: "bad" }, episode.error)] : []), sources(episode), facts(episode));
  const turns = el("div", {}, ...episode.turns.map((turn, at) => turnView(episode, turn, at, longest)));
  main.append(el("div", { class: episode.credit ? "columns" : "" }, turns, receipt(episode.credit)));
  main.classList.toggle("credited", Boolean(episode.credit));
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
