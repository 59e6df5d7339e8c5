// What the page knows: readings of counters, and what went over each edge between two of them.
//
// Counters count since the start of a meshd; rates are differences between two readings. A host whose uptime fell has
// restarted: all it counts is new.

/** Readings older than this are forgotten, in milliseconds. */
const KEPT_MS = 130_000;
/** Rates are of at least this long a time, in milliseconds. */
const WINDOW_MS = 10_000;
/** What a meshd counts of those who come in: not a call of anybody here. */
const INBOUND = "InboundCluster";

/** `reviews.default.svc.cluster.local` is `reviews` to people; in another namespace, `reviews.shop`. */
export function short(host) {
  const end = host.indexOf(".svc.");
  if (end < 0) return host;
  const name = host.slice(0, end);
  return name.endsWith(".default") ? name.slice(0, -".default".length) : name;
}

export class Readings {
  #kept = [];

  /** Takes in an answer of /stats and when it came. */
  add(hosts, at) {
    const edges = new Map();
    for (const host of hosts) {
      for (const edge of host.edges) {
        if (edge.destination === INBOUND) continue;
        const key = [host.host, edge.source, edge.destination, edge.port, edge.subset, edge.version].join("\u0000");
        edges.set(key, { ...edge, uptime: host.uptime_ms });
      }
    }
    this.#kept.push({ at, edges });
    while (this.#kept.length > 2 && this.#kept[0].at < at - KEPT_MS) this.#kept.shift();
  }

  /** Returns the seconds that `edges` is about. */
  seconds() {
    const [before, now] = this.#span();
    return now ? (now.at - before.at) / 1000 : 0;
  }

  /** Returns what went over each edge lately: merged over hosts, one entry for each source, destination and version. */
  edges() {
    const [before, now] = this.#span();
    return now ? between(before, now) : [];
  }

  /** Returns requests a second to `destination`, one number for each pair of readings, oldest first. */
  history(destination) {
    const rates = [];
    for (let index = 1; index < this.#kept.length; index++) {
      const [before, now] = [this.#kept[index - 1], this.#kept[index]];
      let requests = 0;
      for (const [key, edge] of now.edges) {
        if (edge.destination === destination) requests += edge.requests - earlier(before.edges.get(key), edge).requests;
      }
      rates.push(requests / Math.max(0.001, (now.at - before.at) / 1000));
    }
    return rates;
  }

  #span() {
    const now = this.#kept.at(-1);
    if (this.#kept.length < 2) return [now, undefined];
    const before = this.#kept.findLast((reading) => reading.at <= now.at - WINDOW_MS) ?? this.#kept[0];
    return [before, now];
  }
}

const NOTHING = { requests: 0, failures: 0, retries: 0, latency_us: [] };

function earlier(was, edge) {
  return was && was.uptime <= edge.uptime ? was : NOTHING;
}

function between(before, now) {
  const seconds = Math.max(0.001, (now.at - before.at) / 1000);
  const merged = new Map();
  for (const [key, edge] of now.edges) {
    const was = earlier(before.edges.get(key), edge);
    const name = [edge.source, edge.destination, edge.port, edge.version || edge.subset].join("\u0000");
    const sum = merged.get(name) ?? {
      source: edge.source, destination: edge.destination, port: edge.port, version: edge.version || edge.subset,
      requests: 0, failures: 0, retries: 0, buckets: new Map(), seconds,
    };
    sum.requests += edge.requests - was.requests;
    sum.failures += edge.failures - was.failures;
    sum.retries += edge.retries - was.retries;
    const past = new Map(was.latency_us);
    for (const [bound, count] of edge.latency_us) {
      sum.buckets.set(bound, (sum.buckets.get(bound) ?? 0) + count - (past.get(bound) ?? 0));
    }
    merged.set(name, sum);
  }
  return [...merged.values()].filter((sum) => sum.requests > 0);
}

/** Adds edges up: rate, share of success, percentiles. */
export function total(edges) {
  const sum = { requests: 0, failures: 0, retries: 0, seconds: edges[0]?.seconds ?? 1 };
  const buckets = new Map();
  for (const edge of edges) {
    sum.requests += edge.requests;
    sum.failures += edge.failures;
    sum.retries += edge.retries;
    for (const [bound, count] of edge.buckets) buckets.set(bound, (buckets.get(bound) ?? 0) + count);
  }
  const sorted = [...buckets].sort((a, b) => a[0] - b[0]);
  return {
    ...sum,
    rate: sum.requests / sum.seconds,
    success: sum.requests ? 1 - sum.failures / sum.requests : undefined,
    p50: percentile(sorted, 0.5),
    p99: percentile(sorted, 0.99),
  };
}

/** Returns the upper bound, in microseconds, of the bucket that holds a share of all. */
function percentile(sorted, share) {
  const all = sorted.reduce((sum, [, count]) => sum + count, 0);
  let seen = 0;
  for (const [bound, count] of sorted) {
    seen += count;
    if (count > 0 && seen >= all * share) return bound;
  }
  return undefined;
}

/** Says how a share of success is: `well`, `strained` below 99.9 %, `failing` below 99 %; nothing without requests. */
export function judge(success) {
  if (success === undefined) return "";
  if (success >= 0.999) return "well";
  return success >= 0.99 ? "strained" : "failing";
}

/** Joins edges and services to a graph: nodes by name, links between them. */
export function graph(edges, services) {
  // An account that several services share names none of them.
  const owners = new Map();
  for (const service of services) {
    for (const { account } of service.instances) if (account) owners.set(account, (owners.get(account) ?? new Set()).add(service.host));
  }
  const offers = new Map([...owners].filter(([, hosts]) => hosts.size === 1).map(([account, [host]]) => [account, host]));
  const nodes = new Map();
  const node = (id, name) => {
    if (!nodes.has(id)) nodes.set(id, { id, name, service: undefined });
    return nodes.get(id);
  };
  for (const service of services) node(service.host, short(service.host)).service = service;
  const links = new Map();
  for (const edge of edges) {
    const from = offers.get(edge.source) ?? edge.source;
    node(from, offers.has(edge.source) ? short(from) : edge.source.replace(/^default\//, ""));
    node(edge.destination, short(edge.destination));
    const key = `${from}\u0000${edge.destination}`;
    if (!links.has(key)) links.set(key, { from, to: edge.destination, edges: [] });
    links.get(key).edges.push(edge);
  }
  for (const link of links.values()) link.total = total(link.edges);
  for (const one of nodes.values()) {
    one.incoming = [...links.values()].filter((link) => link.to === one.id).flatMap((link) => link.edges);
    one.total = total(one.incoming);
  }
  return { nodes: [...nodes.values()], links: [...links.values()] };
}

/** Returns the versions that answered for a node with their share, in order of name. */
export function versions(edges) {
  const counts = new Map();
  let all = 0;
  for (const edge of edges) {
    if (!edge.version) continue;
    counts.set(edge.version, (counts.get(edge.version) ?? 0) + edge.requests);
    all += edge.requests;
  }
  return [...counts].sort((a, b) => a[0].localeCompare(b[0])).map(([version, count]) => ({ version, share: count / all }));
}
