"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { groups, about } = data;
const partNames = about.reward_names || [];
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const LONG_TEXT = 700; // characters; longer texts are folded until asked for
const WHY_MARK = { lowest: "▼", highest: "▲", tie: "=", no_reward: "∅", dropped: "·" };
const REDRAW_MS = 120;
const ADDRESS_MS = 300;

let current = 0; // index into groups
let found = new Map(); // group index -> positions of the rollouts that pass the filters
let needle = null; // the search as a regular expression
let addressTimer;

// ---- words and small elements -------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  Object.assign(node, properties);
  node.append(...children);
  return node;
}

function svgElement(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const show = (value) => (value === null || value === undefined ? "none" : String(+value.toFixed(4)));
const signed = (value) => (value > 0 ? "+" : "") + show(value);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const words = (why) => why.replaceAll("_", " ");
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const scored = (group) => group.rewards.filter((reward) => reward !== null);

/** Text with what the search found in it marked; always text, never markup. */
function marked(text) {
  if (!needle) return [text];
  const pieces = [];
  let end = 0;
  for (const match of text.matchAll(needle)) {
    pieces.push(text.slice(end, match.index), element("mark", { textContent: match[0] }));
    end = match.index + match[0].length;
  }
  return [...pieces, text.slice(end)];
}

// ---- filters ------------------------------------------------------------------------------

function numberIn(id, otherwise) {
  return byId(id).value === "" ? otherwise : Number(byId(id).value);
}

function readFilters() {
  return {
    text: byId("search").value,
    scope: byId("scope").value,
    show: byId("show").value,
    why: byId("why").value,
    low: numberIn("low", -Infinity),
    high: numberIn("high", Infinity),
    first: numberIn("first", -Infinity),
    last: numberIn("last", Infinity),
  };
}

function hasText(text) {
  needle.lastIndex = 0;
  return text !== null && text !== undefined && needle.test(text);
}

function passing(group, filters) {
  if (group.step < filters.first || group.step > filters.last) return [];
  const inCompletions = needle && filters.scope !== "prompts";
  const promptFound =
    needle && filters.scope !== "completions" && (hasText(group.question) || hasText(group.answer));
  const bounded = filters.low > -Infinity || filters.high < Infinity;
  const positions = [];
  for (let i = 0; i < group.rewards.length; i++) {
    if (filters.show !== "all" && (filters.show === "kept") !== Boolean(group.kept[i])) continue;
    if (filters.why && group.why[i] !== filters.why) continue;
    const reward = group.rewards[i];
    if (bounded && (reward === null || reward < filters.low || reward > filters.high)) continue;
    if (needle && !promptFound && !(inCompletions && hasText(group.texts[i]))) continue;
    positions.push(i);
  }
  return positions;
}

function applyFilters() {
  const filters = readFilters();
  const quoted = filters.text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  needle = filters.text ? new RegExp(quoted, "gi") : null;
  found = new Map();
  let numFound = 0;
  groups.forEach((group, index) => {
    const positions = passing(group, filters);
    if (positions.length) found.set(index, positions);
    numFound += positions.length;
  });
  const used = ["show", "why", "low", "high", "first", "last"].filter(
    (id) => byId(id).value !== "" && byId(id).value !== "all"
  ).length;
  // What passes may be a dropped rollout: it is not left folded then.
  if (needle || used) byId("dropped-fold").open = true;
  byId("active").textContent = used ? `${used} set` : "";
  byId("found").textContent = found.size
    ? `${plural(numFound, "rollout")} in ${plural(found.size, "prompt")}`
    : "Nothing matches. Clear the filters or search for less.";
  if (found.size && !found.has(current)) current = neighbour(1) ?? neighbour(-1);
  draw();
}

function clearFilters() {
  for (const id of ["search", "why", "low", "high", "first", "last"]) byId(id).value = "";
  byId("show").value = "all";
  byId("scope").value = "both";
  applyFilters();
}

// ---- walking from prompt to prompt --------------------------------------------------------

/** The nearest group in a direction that passes the filters, undefined at the end. */
function neighbour(direction) {
  for (let i = current + direction; i >= 0 && i < groups.length; i += direction)
    if (found.has(i)) return i;
  return undefined;
}

function go(index) {
  if (index === undefined || index < 0 || index >= groups.length) return;
  current = index;
  draw();
}

/** Open the group, or the nearest one that passes the filters. */
function goNear(index) {
  const passing = [...found.keys()];
  const apart = (other) => Math.abs(other - index);
  go(passing.length ? passing.reduce((a, b) => (apart(b) < apart(a) ? b : a)) : index);
}

function groupOfHash() {
  const match = /^#step-(\d+)-prompt-(\d+)$/.exec(location.hash);
  if (!match) return -1;
  return groups.findIndex((g) => g.step === Number(match[1]) && g.prompt + 1 === Number(match[2]));
}

function onKey(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft" || event.key === "k") go(neighbour(-1));
  else if (event.key === "ArrowRight" || event.key === "j") go(neighbour(1));
  else if (event.key === "/") byId("search").focus();
  else return;
  event.preventDefault();
}

// ---- pictures -----------------------------------------------------------------------------

/** Bars of a group's rewards: one per value where there are few, otherwise 16 of equal width. */
function bars(group) {
  const values = [...new Set(scored(group))].sort((a, b) => a - b);
  const low = values[0];
  const width = (values[values.length - 1] - low) / 16;
  const few = values.length <= 12;
  const found = few
    ? values.map((value) => ({ label: show(value), kept: 0, dropped: 0 }))
    : Array.from({ length: 16 }, (_, i) => ({
        label: `${show(low + i * width)} to ${show(low + (i + 1) * width)}`, kept: 0, dropped: 0,
      }));
  const none = { label: "none", kept: 0, dropped: 0 };
  group.rewards.forEach((reward, i) => {
    const place = few ? values.indexOf(reward) : Math.min(15, Math.floor((reward - low) / width));
    const bar = reward === null ? none : found[place];
    bar[group.kept[i] ? "kept" : "dropped"] += 1;
  });
  const all = none.kept + none.dropped ? [...found, none] : found;
  return { all, ticks: few ? all.map((bar) => bar.label) : [show(low), show(values.at(-1))] };
}

function histogram(group) {
  const { all, ticks } = bars(group);
  const [width, height, top, bottom] = [360, 132, 16, 18];
  const most = Math.max(...all.map((bar) => bar.kept + bar.dropped));
  const slot = width / all.length;
  const thick = Math.min(46, slot * 0.72);
  const tall = (count) => (count / most) * (height - top - bottom);
  const label = all.map((b) => `${b.label}: ${b.kept} kept, ${b.dropped} dropped`).join("; ");
  const picture = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  all.forEach((bar, i) => {
    const x = i * slot + (slot - thick) / 2;
    const base = height - bottom;
    const title = `${bar.label}: ${bar.kept} kept, ${bar.dropped} dropped`;
    const keptTop = base - tall(bar.kept);
    const droppedTop = keptTop - tall(bar.dropped);
    const column = svgElement("g", {}, svgElement("title", {}, title));
    if (bar.dropped)
      column.append(svgElement("rect", { class: "bar dropped", x, y: droppedTop, width: thick, height: tall(bar.dropped) }));
    if (bar.kept)
      column.append(svgElement("rect", { class: "bar kept", x, y: keptTop, width: thick, height: tall(bar.kept) }));
    if (all.length <= 16 && bar.kept + bar.dropped) {
      const sum = bar.kept + bar.dropped;
      const text = bar.kept && bar.dropped && all.length < 8 ? `${bar.kept} of ${sum}` : String(sum);
      column.append(svgElement("text", { class: "amount", x: x + thick / 2, y: droppedTop - 4 }, text));
    }
    picture.append(column);
  });
  picture.append(svgElement("line", { class: "axis", x1: 0, x2: width, y1: height - bottom, y2: height - bottom }));
  ticks.forEach((tick, i) => {
    const apart = ticks.length === all.length;
    const x = apart ? (i + 0.5) * slot : i === 0 ? 0 : width;
    const anchor = apart ? "middle" : i === 0 ? "start" : "end";
    picture.append(svgElement("text", { class: "tick", x, y: height - 4, "text-anchor": anchor }, tick));
  });
  return picture;
}

function means(group) {
  const all = scored(group);
  const kept = group.rewards.filter((reward, i) => group.kept[i] && reward !== null);
  if (!all.length) return "no rewards";
  return `mean ${show(mean(all))}` + (kept.length ? `, of the kept ${show(mean(kept))}` : "");
}

function drawMap() {
  const stepNumbers = [...new Set(groups.map((group) => group.step))];
  const column = new Map(stepNumbers.map((step, i) => [step, i]));
  const tallest = Math.max(...groups.map((group) => group.prompt)) + 1;
  const averages = groups.map((group) => (scored(group).length ? mean(scored(group)) : null));
  const known = averages.filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const picture = svgElement("svg", {
    viewBox: `0 0 ${stepNumbers.length * 10} ${tallest * 10}`, preserveAspectRatio: "none",
    style: `height:${Math.min(120, Math.max(14, tallest * 12))}px;max-width:${stepNumbers.length * 26}px`,
    role: "img", "aria-label": `Mean reward of ${plural(groups.length, "prompt")}, from ${show(low)} to ${show(high)}`,
  });
  groups.forEach((group, i) => {
    const tone = averages[i] === null || high === low ? 0.5 : (averages[i] - low) / (high - low);
    const title = `step ${group.step}, prompt ${group.prompt + 1}: mean reward ${show(averages[i])}`;
    const cell = svgElement("rect", {
      class: "cell", x: column.get(group.step) * 10 + 0.6, y: group.prompt * 10 + 0.6, width: 8.8, height: 8.8,
      "fill-opacity": 0.12 + 0.88 * tone, "data-index": i,
    }, svgElement("title", {}, title));
    picture.append(cell);
  });
  picture.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) go(Number(cell.dataset.index));
  });
  byId("map").replaceChildren(picture);
}

/** A line over steps; null breaks it. The axis goes from 0 to 1 for shares. */
function chart(title, steps, values, isShare) {
  const [width, height] = [300, 84];
  const known = values.filter((value) => value !== null);
  if (!known.length) return element("p", { className: "hint", textContent: `${title}: none` });
  const low = isShare ? 0 : Math.min(...known);
  const high = isShare ? 1 : Math.max(...known);
  const x = (i) => (steps.length > 1 ? (i / (steps.length - 1)) * (width - 8) + 4 : width / 2);
  const y = (value) => height - 6 - (high > low ? (value - low) / (high - low) : 0.5) * (height - 12);
  const name = isShare ? (value) => `${Math.round(100 * value)} %` : show;
  const text = `from ${name(known[0])} to ${name(known[known.length - 1])}`;
  const picture = svgElement("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${title} over steps ${steps[0]} to ${steps[steps.length - 1]}, ${text}`,
  });
  let path = "";
  let isOpen = false;
  values.forEach((value, i) => {
    if (value !== null) path += `${isOpen ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    isOpen = value !== null;
  });
  picture.append(
    svgElement("line", { class: "axis", x1: 0, x2: width, y1: height - 2, y2: height - 2 }),
    svgElement("path", { class: "line", d: path })
  );
  if (known.length === 1) {
    const only = values.indexOf(known[0]);
    picture.append(svgElement("circle", { class: "dot", cx: x(only), cy: y(known[0]), r: 3 }));
  }
  const range = isShare ? "" : `, between ${name(low)} and ${name(high)}`;
  return element("figure", {}, element("figcaption", { textContent: `${title} ${text}${range}` }), picture);
}

function drawOverSteps() {
  const { step, reward, kept, dead } = data.overSteps;
  byId("over-steps").replaceChildren(
    chart("Mean reward", step, reward, false),
    chart("Share kept", step, kept, true),
    chart("Dead groups (kept rewards all equal)", step, dead, true)
  );
}

// ---- the group ----------------------------------------------------------------------------

function reason(group, i) {
  const why = group.why[i];
  const text = `${WHY_MARK[why] ?? "•"} ${words(why)}`;
  if (why !== "tie") return text;
  const same = group.rewards.map((_, j) => j).filter((j) => group.rewards[j] === group.rewards[i]);
  return `${text}, ${same.filter((j) => group.kept[j]).length} of ${same.length}`;
}

function card(group, i) {
  const kept = Boolean(group.kept[i]);
  const head = element("header", {},
    element("span", { className: "reward", textContent: show(group.rewards[i]) }),
    element("span", { className: `badge ${group.why[i]}`, textContent: reason(group, i) }),
    element("span", { className: "position", textContent: `#${i + 1}` }));
  const facts = element("dl", { className: "facts" });
  const fact = (name, value) => facts.append(element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })));
  partNames.forEach((name, f) => fact(name, show(group.parts[f][i])));
  if (group.num_tokens[i] !== null) fact("tokens", group.num_tokens[i].toLocaleString("en"));
  if (kept && group.advantages[i] !== null) fact("advantage", signed(group.advantages[i]));
  const given = group.given?.[i] ?? [];
  if (group.given && group.texts[i]) fact("turns", String(parts(group.texts[i], given).filter((part) => !part.given).length));
  const node = element("article", { className: `card ${kept ? "is-kept" : "is-dropped"}` }, head, facts);
  node.setAttribute("aria-label", `Rollout ${i + 1}, reward ${show(group.rewards[i])}, ${words(group.why[i])}`);
  node.append(...completion(group.texts[i], given));
  return node;
}

/** A rollout's text in turn: what the model wrote, and what came back and is not trained on. */
function parts(text, given) {
  const characters = [...text]; // as Python counts them
  const found = [];
  const add = (start, end, isGiven) => {
    const piece = characters.slice(start, end).join("");
    const shown = isGiven ? piece.replace(/^\n+|\n+$/g, "") : piece;
    if (shown) found.push({ text: shown, given: isGiven });
  };
  let end = 0;
  for (const [start, stop] of given) {
    add(end, start, false);
    add(start, stop, true);
    end = stop;
  }
  add(end, characters.length, false);
  return found;
}

function completion(text, given) {
  if (text === null) return [element("p", { className: "text absent", textContent: "sampled by another process" })];
  if (text === "") return [element("p", { className: "text absent", textContent: "empty" })];
  const told = parts(text, given).flatMap((part) => part.given
    ? [element("span", { className: "given", title: "not written by the model, not trained on" }, ...marked(part.text))]
    : marked(part.text));
  const body = element("div", { className: "text" }, ...told);
  if (text.length <= LONG_TEXT && text.split("\n").length <= 14) return [body];
  body.classList.add("folded");
  const button = element("button", { type: "button", className: "more", textContent: `Show all ${text.length.toLocaleString("en")} characters` });
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const folded = body.classList.toggle("folded");
    button.setAttribute("aria-expanded", String(!folded));
    button.textContent = folded ? `Show all ${text.length.toLocaleString("en")} characters` : "Show less";
  });
  return [body, button];
}

function ordered(group, positions) {
  const key = { reward: (i) => -(group.rewards[i] ?? -Infinity), tokens: (i) => -group.num_tokens[i], position: (i) => i };
  const of = key[byId("order").value];
  return [...positions].sort((a, b) => (of(a) === of(b) ? a - b : of(a) - of(b)));
}

function drawColumn(id, group, kept) {
  const all = group.kept.filter((flag) => Boolean(flag) === kept).length;
  const visible = ordered(group, (found.get(current) ?? []).filter((i) => Boolean(group.kept[i]) === kept));
  const count = visible.length === all ? `${all}` : `${visible.length} of ${all}`;
  byId(`${id}-title`).replaceChildren(kept ? "Kept " : "Dropped ", element("span", { className: "count", textContent: count }));
  const cards = visible.map((i) => card(group, i));
  byId(id).replaceChildren(...(cards.length ? cards : [element("p", { className: "empty", textContent: all ? "none passes the filters" : "none" })]));
}

function draw() {
  const group = groups[current];
  byId("place").textContent = `Step ${group.step}, prompt ${group.prompt + 1}`;
  byId("slider").value = current;
  byId("slider").setAttribute("aria-valuetext", byId("place").textContent);
  byId("previous").disabled = neighbour(-1) === undefined;
  byId("next").disabled = neighbour(1) === undefined;
  byId("question").replaceChildren(...marked(group.question ?? ""));
  byId("answer").replaceChildren(...(group.answer === undefined ? [] : ["Answer: ", ...marked(group.answer)]));
  byId("histogram").replaceChildren(histogram(group));
  byId("means").textContent = means(group);
  drawColumn("kept", group, true);
  drawColumn("dropped", group, false);
  for (const cell of byId("map").querySelectorAll(".cell")) {
    cell.classList.toggle("here", Number(cell.dataset.index) === current);
    cell.classList.toggle("out", !found.has(Number(cell.dataset.index)));
  }
  clearTimeout(addressTimer); // browsers refuse many changes of the address in a row
  addressTimer = setTimeout(
    () => history.replaceState(null, "", `#step-${group.step}-prompt-${group.prompt + 1}`), ADDRESS_MS
  );
}

// ---- start --------------------------------------------------------------------------------

function describeRun() {
  document.title = `Rollouts of ${data.run}`;
  byId("run-name").textContent = data.run;
  const rollouts = groups.reduce((sum, group) => sum + group.rewards.length, 0);
  const stepNumbers = groups.map((group) => group.step);
  const facts = [
    about.model, about.task,
    about.system_prompt !== undefined && `system prompt: ${about.system_prompt || "none"}`,
    about.prompt_template && `template: ${about.prompt_template}`,
    about.answer_format && `answers: ${about.answer_format}`,
    about.grader && `grader: ${about.grader}`,
    about.num_rollouts && `${about.num_generations} of ${about.num_rollouts} kept by ${words(about.rule)}`,
    `${plural(rollouts, "rollout")} of ${plural(groups.length, "prompt")}, steps ${Math.min(...stepNumbers)} to ${Math.max(...stepNumbers)}`,
  ];
  byId("about").textContent = facts.filter(Boolean).join(" · ");
  const notes = [];
  if (groups.length < data.numGroups)
    notes.push(`This page shows ${plural(groups.length, "prompt")} of ${data.numGroups.toLocaleString("en")}, spread evenly; ${plural(data.numRollouts - rollouts, "rollout")} are left out. Write it with a higher --limit or fewer --steps to see them.`);
  if (data.stopped) notes.push(`The log stopped ${data.stopped.stopped}: rollouts from step ${data.stopped.step} on were not written.`);
  byId("notes").textContent = notes.join(" ");
  byId("notes").hidden = !notes.length;
}

function start() {
  describeRun();
  const reasons = [...new Set(groups.flatMap((group) => group.why))].sort();
  byId("why").append(...reasons.map((why) => element("option", { value: why, textContent: words(why) })));
  byId("slider").max = groups.length - 1;
  byId("filters").open = matchMedia("(min-width: 720px)").matches;
  let timer;
  const later = () => { clearTimeout(timer); timer = setTimeout(applyFilters, REDRAW_MS); };
  byId("search").addEventListener("input", later);
  for (const id of ["low", "high", "first", "last"]) byId(id).addEventListener("input", later);
  for (const id of ["scope", "show", "why"]) byId(id).addEventListener("change", applyFilters);
  byId("order").addEventListener("change", draw);
  byId("clear").addEventListener("click", clearFilters);
  byId("previous").addEventListener("click", () => go(neighbour(-1)));
  byId("next").addEventListener("click", () => go(neighbour(1)));
  byId("slider").addEventListener("input", (event) => goNear(Number(event.target.value)));
  addEventListener("keydown", onKey);
  addEventListener("hashchange", () => go(groupOfHash()));
  current = Math.max(0, groupOfHash());
  drawOverSteps();
  drawMap();
  applyFilters();
}

start();
