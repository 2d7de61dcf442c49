// Draws what the server tells: events named "state" with a document (web/document.py), and one named
// "end" with how its process ends. It asks nobody for anything else, and puts no text into the page
// but as text: names and addresses are whatever somebody called them.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 640, COLUMNS = 64;

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((each) => (each instanceof Node ? each : String(each))));
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${at && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// One migration

function progress(status, map) {
  if (!status.is_mirroring && map.received === undefined) return null; // it is over
  if (status.migration_pass_size) return status.migration_pass_sent / status.migration_pass_size;
  return map.received === undefined ? null : status.covered_bytes / status.size;
}

const FACTS = [
  ["state", "migration_state", String],
  ["state", "listening_state", String],
  ["sender", "sender", String],
  ["received", "covered_bytes", bytes],
  ["pass", "migration_pass", String],
  ["attempt", "migration_attempt", String],
  ["running for", "migration_duration", duration],
  ["sent", "migration_bytes_sent", bytes],
  ["left", "migration_bytes_left", bytes],
  ["time left", "migration_seconds_left", duration],
  ["can be sent", "migration_send_rate", (value) => `${bytes(value)}/s`],
  ["clients change", "migration_dirty_rate", (value) => `${bytes(value)}/s`],
  ["clients are limited to", "migration_write_limit", (value) => `${bytes(value)}/s`],
  ["sending is limited to", "migration_speed_limit", (value) => `${bytes(value)}/s`],
  ["compared", "migration_bytes_compared", bytes],
  ["found equal", "compared_bytes", bytes],
  ["converges", "migration_verdict", String],
  ["warning", "migration_warning", String],
  ["in the way", "migration_obstacle", String],
  ["clients parked for", "migration_parked", duration],
  ["rebind attempts", "rebind_attempts", String],
  ["rebind waits for", "rebind_error", String],
  ["last error", "migration_error", String],
];

const meanings = new Map(); // of the status' fields, by their names

function facts(status) {
  const list = element("dl");
  for (const [title, name, format] of FACTS) {
    const value = status[name];
    if (value === undefined || value === null || value === "") continue;
    const meaning = { title: meanings.get(name) || "" };
    list.append(element("div", meaning, element("dt", {}, title), element("dd", {}, format(value))));
  }
  return list;
}

function key(...entries) {
  const list = element("p", { class: "key" });
  for (const [kind, text] of entries) {
    list.append(element("span", {}, element("i", { class: kind }), text));
  }
  return list;
}

function line(runs, kind, x, y) {
  const points = runs.map((run) => "M" + run.map(([at, value]) => `${x(at)} ${y(value)}`).join("L"));
  return drawn("path", { class: `plot ${kind}`, d: points.join("") });
}

const most = (...several) =>
  Math.max(1, ...several.flat().map((run) => Math.max(...run.map((point) => point[1]))));

function plot(told) {
  const height = 150, left = 8, top = 16, bottom = 128;
  const made = drawn("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img",
    "aria-label": "rates, bytes left and phases over time" });
  const x = (seconds) => (left + (seconds / (told.seconds || 1)) * (WIDTH - 2 * left)).toFixed(1);
  const scale = (greatest) => (value) =>
    (bottom - (value / greatest) * (bottom - top)).toFixed(1);
  const fastest = most(told.sent, told.changed), largest = most(told.bytes_left);
  for (const part of [0, 0.5, 1]) {
    const y = scale(1)(part);
    made.append(drawn("line", { class: "grid", x1: left, x2: WIDTH - left, y1: y, y2: y }));
  }
  made.append(line(told.bytes_left, "bytes_left", x, scale(largest)));
  made.append(line(told.changed, "changed", x, scale(fastest)));
  made.append(line(told.sent, "sent", x, scale(fastest)));
  made.append(drawn("text", { x: left, y: 11 }, `${bytes(fastest)}/s`));
  made.append(drawn("text", { x: WIDTH - left, y: 11, "text-anchor": "end" }, bytes(largest)));
  made.append(drawn("text", { x: WIDTH - left, y: height - 1, "text-anchor": "end" },
    duration(told.seconds)));
  const columns = told.phases.reduce((sum, [, count]) => sum + count, 0) || 1;
  let at = 0;
  for (const [kind, count] of told.phases) {
    if (kind !== null) {
      const scaled = (WIDTH - 2 * left) / columns;
      made.append(drawn("rect", { class: `phase-${kind}`, x: left + at * scaled, y: 131,
        width: count * scaled, height: 7 }));
    }
    at += count;
  }
  return made;
}

function map(told) {
  const layers = ["received", "unverified", "left"].filter((name) => told[name] !== undefined);
  const cells = Math.max(0, ...layers.map((name) => told[name].length));
  const rows = Math.max(1, Math.ceil(cells / COLUMNS)), side = WIDTH / COLUMNS;
  const made = drawn("svg", { viewBox: `0 0 ${WIDTH} ${rows * side}`, role: "img",
    "aria-label": "the image's blocks" });
  for (let cell = 0; cell < cells; cell += 1) {
    const place = { x: (cell % COLUMNS) * side + 0.5, y: Math.floor(cell / COLUMNS) * side + 0.5,
      width: side - 1, height: side - 1 };
    made.append(drawn("rect", { ...place, class: "done" }));
    for (const name of layers) {
      const level = Number(told[name][cell] || 0);
      if (level) made.append(drawn("rect", { ...place, class: name, opacity: 0.25 + level / 12 }));
    }
  }
  return made;
}

function article(told) {
  const { status } = told;
  const made = element("article");
  const where = status.migration_address ? ` to ${status.migration_address}` : "";
  const what = told.map.received === undefined ? `Migration${where}` : "Receiving";
  made.append(element("h2", {}, told.export ? `${what}: ${told.export}` : what));
  const part = progress(status, told.map);
  if (part !== null) {
    const percent = Math.min(100, Math.floor(100 * part));
    const inner = element("div");
    inner.style.width = `${percent}%`;
    made.append(element("div", { class: "bar", role: "progressbar", "aria-valuenow": percent,
      "aria-valuemin": 0, "aria-valuemax": 100 }, inner));
    const pass = status.migration_pass ? ` of pass ${status.migration_pass}` : "";
    made.append(element("p", { class: "percent" }, `${percent} %${pass}`));
  }
  if (told.summary) {
    const good = /^(complete|copied)$/.test(status.last_migration_verdict || "");
    made.append(element("p", { class: `summary ${good ? "good" : "bad"}` }, told.summary));
  }
  made.append(facts(status));
  if (told.plot && told.plot.seconds) {
    made.append(element("h3", {}, "Over time"), plot(told.plot));
    made.append(key(["sent", "sent a second"], ["changed", "changed by clients a second"],
      ["bytes_left", "still to send"]));
    const there = new Set(told.plot.phases.map(([kind]) => kind).filter((kind) => kind !== null));
    made.append(key(...[...there].map((kind) => [`phase-${kind}`, kind])));
    for (const [at, error] of told.plot.failures) {
      made.append(element("p", { class: "note bad" }, `after ${duration(at)}: ${error}`));
    }
  }
  const blocks = told.map;
  if (blocks.left !== undefined || blocks.received !== undefined) {
    made.append(element("h3", {}, `Blocks, ${bytes(blocks.cell)} a cell`), map(blocks));
    if (blocks.received !== undefined) made.append(key(["received", "received"], ["done", "not yet"]));
    else {
      const entries = [["left", "still to send"]];
      if (blocks.unverified !== undefined) entries.push(["unverified", "sent, not compared yet"]);
      made.append(key(...entries, ["done", "there"]));
    }
  }
  return made;
}

// The server

function state(each) {
  if (each.listening_state && !each.has_control) return each.listening_state;
  if (each.is_mirroring) return "migrating";
  return each.verdict ? `migration ${each.verdict}` : "served";
}

function row(...cells) {
  return element("tr", {}, ...cells.map((text) => element("td", {}, text)));
}

function show(told) {
  const server = told.server;
  byId("server").textContent = `${server.version}, process ${server.pid}`;
  byId("migrations").replaceChildren(...told.migrations.map(article));
  byId("exports").replaceChildren(...told.exports.map((each) =>
    row(each.name || "(default)", bytes(each.size), each.clients, state(each))));
  byId("clients").replaceChildren(...told.clients.map((each) =>
    row(each.number, each.address, each.export === null ? "negotiating" : each.export || "(default)")));
  const unseen = [];
  if (server.num_exports > told.exports.length) unseen.push(`${server.num_exports} exports in all`);
  if (server.num_clients > told.clients.length) unseen.push(`${server.num_clients} clients in all`);
  byId("more").textContent = unseen.join(", ");
}

function tell(text, kind) {
  byId("link").textContent = text;
  byId("link").className = kind;
  document.body.classList.toggle("gone", kind !== "good");
}

// What is seen of the server: when it was last heard of, whether it has said how it ends, and which
// process it is; another one may take the address.
const SILENCE = 6000, RETRY = 2000; // milliseconds
let source = null, heard = Date.now(), seen = null, ended = false, name = null, others = "";

function clock() {
  return new Date().toLocaleTimeString();
}

function lost(why) {
  if (ended) return; // it said so; whoever comes to this address next is shown by itself
  const last = seen ? ` What is shown is from ${seen}.` : "";
  tell(`${why}${last} Trying again.`, "bad");
}

function connect() {
  if (source !== null) source.close();
  heard = Date.now();
  source = new EventSource("events");
  source.addEventListener("state", (event) => {
    const told = JSON.parse(event.data);
    heard = Date.now();
    seen = clock();
    ended = false;
    if (name !== null && name !== told.server.name) others = ` (another process, since ${seen})`;
    name = told.server.name;
    show(told);
    tell(`live${others}`, "good");
  });
  source.addEventListener("end", (event) => {
    const told = JSON.parse(event.data);
    ended = true;
    const status = told.status === null ? "" : ` with status ${told.status}`;
    tell(`The server has ended${status} at ${clock()}: ${told.reason || "no reason is known"}. ` +
      "What is shown is the last of it.", told.status === 0 ? "ended good" : "bad");
  });
  source.onerror = () => {
    lost("No answer from the server: it has ended, or can't be reached.");
    // Where what answered was no stream of events, a browser does not try again by itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY);
  };
}

// A host that vanishes closes no connection.
setInterval(() => {
  if (Date.now() - heard < SILENCE) return;
  lost("Nothing is heard of the server: it doesn't answer, or the way there is cut.");
  connect();
}, 1000);

fetch("fields.json").then((answer) => answer.json()).then((fields) => {
  for (const field of fields) meanings.set(field.name, field.doc);
}).catch(() => {}); // without them, the page only explains less

connect();
