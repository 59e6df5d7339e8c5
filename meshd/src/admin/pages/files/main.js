// The page: reads meshd again and again, and shows what it read.

import { Readings, graph, judge, short, total, versions } from "./model.js";
import { show as showMap } from "./map.js";
import { ago, count, draw, duration, make, percent, rate, yaml } from "./words.js";

/** Counters are read this often, in milliseconds; all else every third time. */
const EVERY_MS = 2_000;
/** An answer that takes longer than this, in milliseconds, is given up. */
const PATIENCE_MS = 6_000;

const byId = (id) => document.getElementById(id);
const readings = new Readings();
const known = { status: undefined, services: [], resources: [], findings: [], history: [] };
let chosen;
let paused = false;
let heard = 0;
/** What each part was last made of: it is made anew only when that changed, so that nothing closes under a reader. */
const made = new Map();

async function read(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), headers: { accept: "application/json" } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message ?? `${path}: ${answer.status}`);
  return Object.values(body)[0];
}

async function turn(round) {
  const troubles = [];
  const take = async (path, use) => {
    try {
      use(await read(path));
    } catch (error) {
      troubles.push([path, error]);
    }
  };
  const jobs = [take("/stats?scope=mesh", (hosts) => readings.add(hosts, performance.now()))];
  if (round % 3 === 0) {
    jobs.push(
      take("/status", (status) => { known.status = status; }),
      take("/services", (services) => { known.services = services; }),
      take("/resources", ({ items }) => { known.resources = items; }),
      take("/findings", (findings) => { known.findings = findings; }),
      take("/history", (history) => { known.history = history; }),
    );
  }
  await Promise.all(jobs);
  if (troubles.length < jobs.length) heard = Date.now();
  tell(troubles, jobs.length);
  render();
}

/** Says what is wrong: meshd gone, or only some answers missing. */
function tell(troubles, asked) {
  const line = byId("trouble");
  if (!troubles.length && known.status?.no_quorum === null) line.hidden = true;
  else if (troubles.length === asked) {
    line.textContent = heard
      ? `meshd does not answer. What is shown is from ${ago(heard)}.`
      : "meshd does not answer. Is it running? systemctl status meshd, or meshctl doctor.";
    line.hidden = false;
  } else if (known.status?.no_quorum) {
    line.textContent = `Nothing can be changed now: ${known.status.no_quorum}. Traffic goes on with the last rules.`;
    line.hidden = false;
  } else if (troubles.length) {
    line.textContent = troubles[0][1].message;
    line.hidden = false;
  }
}

function render() {
  const edges = readings.edges();
  const picture = graph(edges, known.services);
  if (chosen && !picture.nodes.some((node) => node.id === chosen)) chosen = undefined;
  for (const span of document.querySelectorAll(".window")) span.textContent = `${Math.max(1, Math.round(readings.seconds()))} s`;
  summary();
  map(picture);
  detail(picture);
  golden(edges);
  fill("findings", known.findings, findings);
  fill("objects", known.resources, objects);
  fill("machines", known.status, machines);
  fill("history", [known.history, Math.floor(Date.now() / 30_000)], () => history(known.history));
}

/** Makes a part anew if what it is made of has changed. */
function fill(id, from, build) {
  const text = JSON.stringify(from ?? null);
  if (made.get(id) === text) return;
  made.set(id, text);
  const parts = from === undefined ? [] : build(from);
  byId(id).replaceChildren(...[parts].flat());
}

function summary() {
  const status = known.status;
  if (!status) return;
  const live = status.hosts.filter((host) => host.liveness === "live").length;
  const all = live === status.hosts.length;
  const state = status.no_quorum ? "failing" : all ? "well" : "strained";
  const words = [
    `${all ? count(live, "host") : `${live} of ${count(status.hosts.length, "host")} live`}`,
    status.leader ? `leader ${status.leader}` : "no leader",
    `revision ${status.revision}`,
    `seen from ${status.answered_by}`,
  ];
  byId("mesh").replaceChildren(make("span", { class: `dot ${state}` }), words.join(" · "));
}

function map(picture) {
  if (picture.nodes.length === 0) {
    return fill("picture", "none", () => make(
      "p", { class: "empty" },
      "No service is registered yet. On a host that runs one: ", make("code", {}, "meshctl service register reviews --port 9080:http:8081"),
    ));
  }
  made.delete("picture");
  showMap(byId("picture"), picture, chosen, (id) => {
    chosen = chosen === id ? undefined : id;
    render();
  });
}

function detail(picture) {
  const place = byId("chosen");
  const node = picture.nodes.find((one) => one.id === chosen);
  place.hidden = !node;
  if (!node) return;
  const row = (name, edges) => {
    const sum = total(edges);
    return make("li", {}, make("span", {}, name), make("span", { class: "number" }, `${rate(sum.rate)}/s  `, good(sum.success)));
  };
  const list = (title, rows) => make("div", {}, make("h3", {}, title), rows.length ? make("ul", {}, ...rows) : make("p", { class: "soft" }, "none"));
  const name = (id) => picture.nodes.find((one) => one.id === id)?.name ?? id;
  place.replaceChildren(
    make("h3", {}, node.id),
    make(
      "div", { class: "columns" },
      list("Called by", picture.links.filter((link) => link.to === node.id).map((link) => row(name(link.from), link.edges))),
      list("Calls", picture.links.filter((link) => link.from === node.id).map((link) => row(name(link.to), link.edges))),
      list("Versions that answered", versions(node.incoming).map(({ version, share }) => make("li", {}, version, make("span", { class: "number" }, percent(share))))),
      list("Instances", (node.service?.instances ?? []).map(instance)),
    ),
  );
}

function instance(one) {
  const well = one.health === "healthy" && one.liveness === "live";
  const state = one.liveness === "live" ? one.health : `host ${one.liveness}`;
  return make("li", {}, make("span", {}, `${one.id}${one.on ? ` on ${one.on}` : ""}`), make("span", { class: well ? "well" : "failing" }, state));
}

function good(success) {
  return make("span", { class: judge(success) }, percent(success));
}

function golden(edges) {
  const groups = new Map();
  for (const edge of edges) {
    const key = `${short(edge.destination)}:${edge.port}`;
    groups.set(key, [...(groups.get(key) ?? []), edge]);
  }
  if (groups.size === 0) {
    return byId("golden").replaceChildren(make("p", { class: "empty" }, "Nothing was called while this page looked."));
  }
  const rows = [...groups].sort((a, b) => a[0].localeCompare(b[0])).flatMap(([name, group]) => {
    const parts = versions(group);
    const sub = parts.length < 2 ? [] : parts.map(({ version }) => line(version, group.filter((edge) => edge.version === version), "part", total(group).requests));
    return [line(name, group), ...sub];
  });
  byId("golden").replaceChildren(table(["SERVICE", "REQ/S", "SUCCESS", "P50", "P99", "RETRIES/S", "LAST 2 MIN"], rows, [1, 2, 3, 4, 5]));
}

function line(name, edges, kind = "", all = undefined) {
  const sum = total(edges);
  const right = (content) => make("td", { class: "right" }, content);
  const label = all === undefined ? name : `${name}  ${percent(sum.requests / all)}`;
  return make(
    "tr", { class: kind },
    make("th", { scope: "row" }, label),
    right(rate(sum.rate)), right(good(sum.success)), right(duration(sum.p50)), right(duration(sum.p99)),
    right(sum.retries ? rate(sum.retries / sum.seconds) : "–"),
    make("td", {}, kind ? "" : spark(readings.history(edges[0].destination))),
  );
}

function spark(rates) {
  const [wide, high] = [120, 22];
  const most = Math.max(...rates, 0.001);
  const points = rates.map((one, index) => `${(index / Math.max(1, rates.length - 1)) * wide},${high - 2 - (one / most) * (high - 4)}`);
  return draw("svg", { width: wide, height: high, role: "img", "aria-label": `requests a second, at most ${rate(most)}` }, draw("polyline", { class: "spark", points: points.join(" ") }));
}

function table(titles, rows, right = []) {
  const head = titles.map((title, index) => make("th", { scope: "col", class: right.includes(index) ? "right" : undefined }, title));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

function findings(all) {
  return all.map((finding) => make(
    "p", { class: `finding ${finding.severity}` },
    make("strong", {}, `${finding.severity} ${finding.code ?? ""} `), `${finding.object ?? ""} ${finding.message}`,
    finding.hint ? make("span", { class: "hint" }, finding.hint) : undefined,
  ));
}

function objects(stored) {
  if (stored.length === 0) {
    return make("p", { class: "empty" }, "No rules: every service is called as it is. ", make("code", {}, "meshctl apply rules.yaml"), " adds some.");
  }
  return stored.map(({ object, changed }) => {
    const { name, namespace } = object.metadata;
    return make(
      "details", {},
      make(
        "summary", {},
        make("span", { class: "kind" }, object.kind), make("strong", {}, `${namespace}/${name}`),
        make("span", {}, about(object)), make("span", { class: "at" }, `revision ${changed}`),
      ),
      make("pre", {}, yaml(object).trimStart()),
    );
  });
}

/** What an object is about, in a few words. */
function about({ spec }) {
  const names = [spec.hosts ?? spec.host ?? []].flat();
  const rules = ["http", "tls", "tcp"].filter((part) => spec[part]).map((part) => count(spec[part].length, `${part} route`));
  const subsets = spec.subsets ? [spec.subsets.map((one) => one.name).join(", ")] : [];
  const servers = spec.servers ? [count(spec.servers.length, "server")] : [];
  return [names.join(", "), ...rules, ...subsets, ...servers].filter(Boolean).join(" · ");
}

function machines(status) {
  const byName = status.hosts.toSorted((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const rows = byName.map((host) => {
    const live = host.liveness === "live";
    const lag = host.live_revision === null ? "not heard yet" : `${host.live_revision}${host.live_revision < status.revision ? ` of ${status.revision}` : ""}`;
    return make(
      "tr", {},
      make("th", { scope: "row" }, make("span", { class: `dot ${live ? "well" : "failing"}` }), host.name),
      make("td", {}, host.role), make("td", { class: live ? "" : "failing" }, host.liveness), make("td", { class: "right" }, lag),
      make("td", { class: `right ${host.healthy < host.instances ? "strained" : ""}` }, `${host.healthy} of ${host.instances}`),
      make("td", { class: "number wide" }, host.address), make("td", { class: "wide" }, host.version),
      make("td", { class: "wrap failing" }, host.problems.join("; ")),
    );
  });
  const titles = table(["HOST", "ROLE", "STATE", "REVISION", "WELL", "ADDRESS", "VERSION", ""], rows, [3, 4]);
  for (const index of [5, 6]) titles.querySelectorAll("thead th")[index].classList.add("wide");
  return titles;
}

function history(changes) {
  if (changes.length === 0) return make("li", { class: "soft" }, "No rule was changed yet.");
  return changes.map((change) => make(
    "li", {},
    make("strong", {}, `revision ${change.revision}`), make("span", {}, change.reason),
    make("span", { class: "soft" }, `${change.author}, ${ago(change.at)}`),
    make("span", { class: "objects" }, change.objects.map(([object, what]) => `${name(object)} ${what}`).join(" · ")),
  ));
}

/** The name of an object, as a key or as text. */
function name(object) {
  return typeof object === "string" ? object : `${object.kind} ${object.namespace}/${object.name}`;
}

byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  document.body.classList.toggle("paused", paused);
  event.target.setAttribute("aria-pressed", String(paused));
  event.target.textContent = paused ? "Go on" : "Pause";
});
addEventListener("resize", () => render());

for (let round = 0; ; round++) {
  if (!paused && !document.hidden) await turn(round);
  await new Promise((done) => setTimeout(done, EVERY_MS));
}
