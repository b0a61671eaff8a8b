// The status page. It follows client.js in the same module, in a block so that names do not collide.
// Peers choose topics and reasons: all text goes through text nodes, never through markup.
{
  const POLL_SECONDS = 1;
  const POLL_MAX_SECONDS = 5;
  const ANSWER_SECONDS = 5;
  const CHART_SECONDS = 120;
  const CHART_MIN_SECONDS = 20;
  const MAX_SAMPLES = 150;
  // Entries of the list of messages, and the bytes of their data.
  const MAX_ARRIVED = 200;
  const MAX_ARRIVED_BYTES = 32 * 1024 * 1024;
  // Names of clients in a table; 200 may be configured, and more may still be connected after a reload.
  const MAX_NAMES = 50;
  // Not SVG, which is a document that can hold scripts and links.
  const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
  const PLACES = { sqlite: "on disk (sqlite)", jetstream: "shared with other consumers (jetstream)" };
  const SVG = "http://www.w3.org/2000/svg";

  const $ = (id) => document.getElementById(id);

  // Elements

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "path", "rect"].includes(tag);
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) set(element, name, value);
    element.append(...children);
    return element;
  }

  function set(element, name, value) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }

  function say(element, text, level) {
    if (element.textContent !== text) element.textContent = text;
    if (level) set(element, "data-level", level);
  }

  // Show a sentence, with text between backticks as code.
  function sayCode(element, text) {
    if (element.said === text) return;
    element.said = text;
    element.replaceChildren(
      ...text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part)),
    );
  }

  // Numbers as text

  const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1, notation: "compact" });

  function number(value) {
    if (value >= 1e6) return short.format(value);
    return value > 0 && value < 10 && value % 1 ? value.toFixed(1) : grouped.format(value);
  }

  function bytes(value) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
    return `${unit && value < 100 ? value.toFixed(1) : grouped.format(value)} ${units[unit]}`;
  }

  function duration(seconds) {
    const s = Math.floor(seconds);
    const parts = [
      [86400, "d"],
      [3600, "h"],
      [60, "min"],
      [1, "s"],
    ];
    const first = parts.findIndex(([size]) => s >= size);
    if (first < 0) return "0 s";
    return parts
      .slice(first, first + 2)
      .map(([size, unit], index) => {
        const count = Math.floor((index ? s % parts[first][0] : s) / size);
        return index && !count ? "" : `${count} ${unit}`;
      })
      .filter(Boolean)
      .join(" ");
  }

  function brief(seconds) {
    if (seconds < 0.001) return `${grouped.format(seconds * 1e6)} µs`;
    return seconds < 1
      ? `${(seconds * 1e3).toPrecision(seconds < 0.1 ? 2 : 3)} ms`
      : `${seconds.toFixed(1)} s`;
  }

  const clock = (time) => time.toLocaleTimeString("en-GB");
  const day = (unix) => new Date(unix * 1000).toISOString().slice(0, 10);
  const count = (value, singular, plural = `${singular}s`) =>
    `${grouped.format(value)} ${value === 1 ? singular : plural}`;

  // Earlier reports of a node: rates are differences between them

  class History {
    samples = [];

    add(report) {
      const last = this.samples.at(-1);
      // After a restart, or when the clock was set back, earlier reports are of no use.
      if (last && (last.id !== report.id || report.time < last.time)) this.samples = [];
      else if (last && report.time === last.time) return;
      const { id, time, counters } = report;
      const histogram = report.confirm_seconds ?? report.commit_seconds;
      this.samples.push({ id, time, counters, histogram });
      while (this.samples.length > MAX_SAMPLES || time - this.samples[0].time > CHART_SECONDS)
        this.samples.shift();
    }

    // Return [seconds ago, amount per second] of a counter, oldest first.
    rates(counter) {
      const { samples } = this;
      const now = samples.at(-1)?.time;
      return samples.slice(1).map((sample, index) => {
        const before = samples[index];
        const grown = (sample.counters[counter] ?? 0) - (before.counters[counter] ?? 0);
        return [now - sample.time, Math.max(0, grown) / (sample.time - before.time)];
      });
    }

    // Return the times that were counted while this page watched.
    window() {
      const [first, last] = [this.samples[0]?.histogram, this.samples.at(-1)?.histogram];
      if (!first || !last || first.counts.length !== last.counts.length) return null;
      const seconds = this.samples.at(-1).time - this.samples[0].time;
      const counts = last.counts.map((value, index) => value - first.counts[index]);
      return { bounds: last.bounds, counts, seconds };
    }
  }

  function quantile({ bounds, counts }, share) {
    const total = counts.reduce((sum, value) => sum + value, 0);
    let below = 0;
    for (const [index, value] of counts.entries()) {
      if (value && below + value >= share * total) {
        if (index >= bounds.length) return `over ${brief(bounds.at(-1))}`;
        const low = index ? bounds[index - 1] : 0;
        return brief(low + (bounds[index] - low) * ((share * total - below) / value));
      }
      below += value;
    }
    return "–";
  }

  // Parts

  function chart(title, show) {
    const unit = "/s";
    const value = make("span");
    const note = make("p", { class: "note" });
    const paths = ["area", "base", "stroke"].map((name) => make("path", { class: name }));
    const svg = make(
      "svg",
      { class: "spark", viewBox: "0 0 120 40", preserveAspectRatio: "none", role: "img" },
      ...paths,
    );
    const element = make(
      "div",
      { class: "card" },
      make("h3", {}, title),
      make("p", { class: "value" }, value, make("span", { class: "unit" }, unit)),
      svg,
      note,
    );
    set(paths[1], "d", "M0 39.5H120");
    return {
      element,
      update(points) {
        const now = points.at(-1)?.[1];
        const top = Math.max(0, ...points.map((point) => point[1]));
        say(value, now === undefined ? "–" : show(now));
        // The axis grows with the samples, up to its full length.
        const oldest = points[0]?.[0] ?? 0;
        const axis = Math.max(oldest, CHART_MIN_SECONDS);
        const heard = `last ${duration(Math.max(1, oldest))}`;
        say(note, points.length ? `Peak ${show(top)}${unit}, ${heard}` : "Measuring …");
        const x = (ago) => (120 * (1 - ago / axis)).toFixed(1);
        const line = points.map(
          ([ago, rate]) => `${x(ago)} ${(38 - 36 * (top ? rate / top : 0)).toFixed(1)}`,
        );
        set(paths[2], "d", line.length ? `M${line.join("L")}` : "");
        set(paths[0], "d", line.length ? `M${x(oldest)} 39.5L${line.join("L")}L120 39.5Z` : "");
        set(
          svg,
          "aria-label",
          now === undefined
            ? `${title}: measuring`
            : `${title}, ${heard}: now ${show(now)} per second, at most ${show(top)} per second`,
        );
      },
    };
  }

  function facts(list, entries) {
    for (const [index, [name, value]] of entries.entries()) {
      const entry = list.children[index] ?? list.appendChild(make("div", {}, make("dt"), make("dd")));
      say(entry.children[0], name);
      say(entry.children[1], value);
    }
    while (list.children.length > entries.length) list.lastChild.remove();
  }

  // A column is [title, true for numbers]; a cell is a text or { text, level, href }.
  function table(title, columns, empty) {
    const body = make("tbody", { role: "rowgroup" });
    const nothing = make("p", { class: "empty" }, empty);
    const head = columns.map(([name, numbers]) =>
      make("th", { scope: "col", role: "columnheader", class: numbers ? "number" : "" }, name),
    );
    const caption = make("caption", {}, title);
    const grid = make(
      "table",
      { role: "table" },
      caption,
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...head)),
      body,
    );
    const heading = make("h3", {}, title);
    const element = make(
      "div",
      { class: columns.length > 2 ? "card stack" : "card" },
      heading,
      nothing,
      grid,
    );
    return {
      element,
      update(rows) {
        nothing.hidden = heading.hidden = rows.length > 0;
        grid.hidden = !rows.length;
        while (body.children.length > rows.length) body.lastChild.remove();
        for (const [index, cells] of rows.entries()) {
          const row = body.children[index] ?? body.appendChild(make("tr", { role: "row" }));
          for (const [at, cell] of cells.entries())
            fill(row.children[at] ?? row.appendChild(column(at)), cell);
        }
      },
    };

    function column(at) {
      const [name, numbers] = columns[at];
      const attributes = { "data-label": name, class: numbers ? "number" : "" };
      return at
        ? make("td", { role: "cell", ...attributes })
        : make("th", { scope: "row", role: "rowheader", ...attributes });
    }
  }

  // Clients by the names of their keys, added up over reports. Those of which most was refused come first.
  function clientsTable() {
    const clients = table(
      "Clients by name",
      [["Name"], ["Connections", true], ["Topics", true], ["Refused", true]],
      "No clients.",
    );
    const note = make("p", { class: "note" });
    clients.element.append(note);
    return {
      element: clients.element,
      update(reports) {
        const sums = new Map();
        for (const { name, ...values } of reports.flatMap((report) => report.clients ?? [])) {
          const total = sums.get(name) ?? { connections: 0, topics: 0, refused: 0 };
          for (const key of Object.keys(total)) total[key] += values[key];
          sums.set(name, total);
        }
        const order = ([one, a], [other, b]) =>
          b.refused - a.refused || b.connections - a.connections || (one < other ? -1 : 1);
        const rows = [...sums].sort(order);
        clients.update(
          rows.slice(0, MAX_NAMES).map(([name, { connections, topics, refused }]) => [
            name || "(without a name)",
            grouped.format(connections),
            name || topics ? grouped.format(topics) : "–",
            refused ? { text: grouped.format(refused), level: "warn" } : "0",
          ]),
        );
        const more = rows.length - MAX_NAMES;
        say(note, more > 0 ? `and ${count(more, "other name")}` : "");
        // Where nobody has a name, the table of connections says it all.
        clients.element.hidden = !rows.some(([name, { refused }]) => name || refused);
      },
    };
  }

  function fill(cell, value) {
    const { text, level, href } = typeof value === "object" ? value : { text: value };
    if (!level && !href) return say(cell, String(text));
    let inner = cell.firstElementChild;
    if (inner?.tagName !== (href ? "A" : "SPAN")) {
      inner = make(href ? "a" : "span", href ? {} : { class: "badge" });
      cell.replaceChildren(inner);
    }
    if (href) set(inner, "href", href);
    return say(inner, text, level);
  }

  function meter(name) {
    const full = make("rect", { class: "full", height: 8 });
    const svg = make(
      "svg",
      { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img" },
      make("rect", { class: "back", width: 100, height: 8 }),
      full,
    );
    return {
      svg,
      update(value, limit) {
        const share = limit ? Math.min(100, (100 * value) / limit) : 0;
        set(full, "width", share.toFixed(2));
        set(svg, "data-level", share >= 95 ? "bad" : share >= 80 ? "warn" : "ok");
        set(svg, "aria-label", `${name}: ${share.toFixed(0)} percent`);
      },
    };
  }

  function latency(title, singular, plural) {
    const values = make("dl", { class: "pair" });
    const bars = make("svg", { class: "spark", preserveAspectRatio: "none", role: "img" });
    const [low, high] = [make("span"), make("span")];
    const note = make("p", { class: "note" });
    return {
      element: make(
        "div",
        { class: "card" },
        make("h3", {}, title),
        values,
        bars,
        make("p", { class: "ends" }, low, high),
        note,
      ),
      update(histogram) {
        const { bounds = [], counts = [], seconds = 0 } = histogram ?? {};
        const total = counts.reduce((sum, value) => sum + value, 0);
        const [half, nearlyAll] = total ? [quantile(histogram, 0.5), quantile(histogram, 0.99)] : ["–", "–"];
        facts(values, [
          ["Half within (p50)", half],
          ["99 % within (p99)", nearlyAll],
        ]);
        const top = Math.max(1, ...counts);
        set(bars, "viewBox", `0 0 ${Math.max(1, counts.length) * 4 - 1} 40`);
        set(
          bars,
          "aria-label",
          total ? `${title}: half within ${half}, 99 percent within ${nearlyAll}` : `${title}: none yet`,
        );
        while (bars.children.length < counts.length) bars.append(make("rect", { width: 3 }));
        for (const [index, value] of counts.entries()) {
          const height = value ? Math.max(2, (40 * value) / top) : 1;
          const place = { x: index * 4, y: 40 - height, height, class: value ? "bucket" : "none" };
          for (const [name, to] of Object.entries(place)) set(bars.children[index], name, to);
        }
        say(low, bounds.length ? `up to ${brief(bounds[0])}` : "");
        say(high, bounds.length ? `over ${brief(bounds.at(-1))}` : "");
        const counted = total ? count(total, singular, plural) : `No ${singular}`;
        say(note, `${counted}, last ${duration(Math.max(1, seconds))}`);
      },
    };
  }

  // Views: each is built once and updated with every answer

  function nodeView(role) {
    const producer = role === "producer";
    const about = make("dl", { class: "facts card" });
    const charts = [
      ["Messages in", "messages_in", number],
      producer ? ["Forwarded", "forwarded", number] : ["Delivered", "deliveries", number],
      ["Bytes in", "bytes_in", bytes],
      ["Bytes out", "bytes_out", bytes],
    ].map(([title, counter, show]) => ({ counter, ...chart(title, show) }));
    const links = table(
      "Links to consumers",
      [["Consumer"], ["State"], ["Protocol"], ["For", true], ["Held", true], ["Publishers waiting", true]],
      "This producer has no consumers.",
    );
    const times = producer
      ? latency("Time to confirm", "timed batch", "timed batches")
      : latency("Time to write", "commit", "commits");
    const connections = table(
      "Connections",
      [["From"], ["Protocol"], ["State"], ["Count", true]],
      "No connections.",
    );
    const places = meter("Connections, part of the maximum");
    const placesNote = make("p", { class: "note" });
    connections.element.append(places.svg, placesNote);
    const topics = table(
      "Busiest topics",
      [["Topic"], ["Messages/s", true]],
      "No messages in the last seconds.",
    );
    const clients = clientsTable();
    const slow = table(
      "Subscribers that are behind",
      [["Subscriber"], ["Protocol"], ["Messages behind", true], ["Waiting to be sent", true]],
      "None: all keep up.",
    );
    const lags = table(
      "Groups and readers",
      [["Topic"], ["Name"], ["Messages behind", true], ["Members or connections here", true]],
      "No group or named reader, or they are not known yet.",
    );
    const slowNote = make("p", { class: "note" });
    slow.element.append(slowNote);
    const size = meter("Log, part of the maximum");
    const log = make("dl", { class: "facts" });
    const logCard = make("div", { class: "card" }, make("h3", {}, "Log"), size.svg, log);
    const counters = table("All counters", [["Counter"], ["Count", true]], "Nothing is counted yet.");
    const all = make(
      "details",
      { class: "card counters" },
      make("summary", {}, "All counters"),
      counters.element,
    );
    counters.element.className = "";
    const parts = producer
      ? [links.element, make("div", { class: "grid" }, times.element, connections.element, topics.element)]
      : [
          make("div", { class: "grid" }, logCard, times.element, connections.element, topics.element),
          slow.element,
          lags.element,
        ];
    return {
      element: make(
        "div",
        {},
        make("div", { class: "grid charts" }, ...charts.map((each) => each.element)),
        about,
        ...parts,
        clients.element,
        all,
      ),
      update(report, history) {
        for (const each of charts) each.update(history.rates(each.counter));
        facts(about, aboutNode(report));
        links.update(
          report.links.map((link) => [
            nodeLink(link.address),
            link.state === "up"
              ? { text: "up", level: "ok" }
              : { text: `down: ${link.reason}`, level: "bad" },
            link.protocol || "–",
            duration(link.seconds),
            link.held_messages
              ? `${grouped.format(link.held_messages)} (${bytes(link.held_bytes)})`
              : "nothing",
            grouped.format(link.paused_publishers),
          ]),
        );
        times.update(history.window());
        times.element.hidden = report.log?.mode === "memory";
        // Strangers and producers have limits of their own.
        const open = report.connections
          .filter((kind) => kind.state !== "hello" && kind.role !== "producer")
          .reduce((sum, kind) => sum + kind.count, 0);
        connections.update(
          report.connections.map((kind) => [
            kind.role || "pages, new connections",
            kind.protocol || "–",
            kind.state,
            grouped.format(kind.count),
          ]),
        );
        places.update(open, report.max_connections);
        say(placesNote, `${grouped.format(open)} of at most ${grouped.format(report.max_connections)}`);
        topics.update(
          report.top_topics.map(({ topic, messages_per_second: rate }) => [topic || "(empty)", number(rate)]),
        );
        clients.update([report]);
        slow.update(
          report.slow_peers.map((peer) => [
            peer.peer,
            peer.protocol,
            grouped.format(peer.behind_messages),
            bytes(peer.buffered_bytes),
          ]),
        );
        lags.update(
          report.lags.map(({ topic, kind, name, lag, members }) => [
            topic || "(empty)",
            kind === "reader" ? `${name} (reader)` : name,
            grouped.format(lag),
            grouped.format(members),
          ]),
        );
        const unnamed = report.slow_subscribers - report.slow_peers.length;
        say(slowNote, unnamed > 0 ? `and ${count(unnamed, "other")}` : "");
        slow.element.hidden = !report.slow_subscribers;
        logCard.hidden = !report.log;
        if (report.log) aboutLog(report.log);
        counters.update(
          Object.entries(report.counters)
            .sort()
            .map(([name, value]) => [name, grouped.format(value)]),
        );
      },
    };

    function aboutLog(status) {
      size.update(status.bytes, status.limit_bytes);
      facts(log, [
        ["Kept", `${bytes(status.bytes)} of ${bytes(status.limit_bytes)}`],
        ["Where", PLACES[status.mode] ?? `in ${status.mode}`],
        ["Topics", grouped.format(status.topics)],
        ...(status.free_bytes < 0
          ? []
          : [
              ["Waiting for the disk", bytes(status.pending_bytes)],
              ["Free on the disk", bytes(status.free_bytes)],
              ["Last write took", brief(status.commit_seconds)],
            ]),
        ...(status.engine ? aboutEngine(status, status.engine) : []),
        ...(status.failing ? [["Stores nothing", status.failing]] : []),
      ]);
    }
  }

  function aboutEngine(status, engine) {
    const silent = engine.streams_without_leader;
    return [
      ["Connected to", engine.server || "no server"],
      [
        "Servers that have it",
        engine.replicas ? `${engine.replicas} of ${engine.replicas_wanted}` : "none that answers",
      ],
      ...(silent ? [["Streams without an answer", `${silent} of ${engine.streams}`]] : []),
      ...(engine.lag_records ? [["A server is behind by", count(engine.lag_records, "record")]] : []),
      ["Waiting to be stored", bytes(status.pending_bytes)],
      ["Last write took", brief(status.commit_seconds)],
      ["Conflicts, unanswered", `${grouped.format(engine.conflicts)}, ${grouped.format(engine.unanswered)}`],
    ];
  }

  function aboutNode(report) {
    const ends = report.certificate_ends;
    return [
      ["Ready", report.not_ready ? "no" : "yes"],
      ["Up for", duration(report.uptime_seconds)],
      ["Listens on", report.addresses.join(", ") || "–"],
      ["Event loop late by", report.loop_lag_seconds ? brief(report.loop_lag_seconds) : "nothing"],
      [
        "Certificate ends",
        ends === null || ends === undefined
          ? "no certificate"
          : `${day(ends)} (${ends > report.time ? `in ${duration(ends - report.time)}` : "it has ended"})`,
      ],
      ["Key fingerprint", report.psk_fingerprints.join(", ") || "–"],
    ];
  }

  // Link to the page of another node, if this browser probably may see it.
  function nodeLink(address) {
    const place = URL.parse?.(
      address.replace(/^(wss?:\/\/)?/, (found) => (found.startsWith("wss") ? "https://" : "http://")),
    );
    const local = (host) => ["localhost", "127.0.0.1", "[::1]"].includes(host);
    const text = address.replace(/(:\d+)\/.*$/, "$1");
    if (!place || !local(place.hostname) || !local(location.hostname)) return text;
    return { text, href: `${place.origin}/` };
  }

  function clusterView() {
    const charts = [
      ["Published", "producer", "messages_in", number],
      ["Delivered", "consumer", "deliveries", number],
      ["Bytes in", "", "bytes_in", bytes],
      ["Bytes out", "", "bytes_out", bytes],
    ].map(([title, role, counter, show]) => ({ role, counter, ...chart(title, show) }));
    const nodes = table(
      "Nodes",
      [
        ["Node"],
        ["Role"],
        ["State"],
        ["Version"],
        ["In/s", true],
        ["Out/s", true],
        ["Links up", true],
        ["Connections", true],
        ["Warnings", true],
      ],
      "No nodes.",
    );
    const clients = clientsTable();
    const alone = make("p", { class: "card stack" });
    return {
      element: make(
        "div",
        {},
        make("div", { class: "grid charts" }, ...charts.map((each) => each.element)),
        alone,
        nodes.element,
        clients.element,
      ),
      update(cluster, histories) {
        for (const { role, counter, update } of charts) {
          const reporting = cluster.nodes.filter((node) => node.report && (!role || node.role === role));
          update(sum(reporting.map((node) => histories.get(node.address).rates(counter))));
        }
        alone.hidden = cluster.nodes.length > 1;
        say(
          alone,
          "This node knows no other nodes. Name them in the table [monitoring] of its configuration, as " +
            "consumers and producers, to see the whole cluster here.",
        );
        nodes.update(cluster.nodes.map((node) => row(node, histories.get(node.address))));
        // The numbers of a node that does not answer are old.
        const answering = cluster.nodes.filter((node) => node.report && !node.problem);
        clients.update(answering.map((node) => node.report));
      },
    };

    function row(node, history) {
      const { report } = node;
      const role = { text: node.role };
      if (!report)
        return [
          nodeLink(node.address),
          role,
          { text: node.problem || "no report yet", level: "bad" },
          "–",
          "–",
          "–",
          "–",
          "–",
          "–",
        ];
      const now = (counter) => (node.problem ? "–" : number(history.rates(counter).at(-1)?.[1] ?? 0));
      const up = report.links.filter((link) => link.state === "up").length;
      const level = node.problem ? "bad" : report.not_ready ? "warn" : "ok";
      return [
        nodeLink(node.address),
        role,
        { text: node.problem || report.not_ready || "ready", level },
        report.version,
        now("messages_in"),
        now(node.role === "producer" ? "forwarded" : "deliveries"),
        node.role === "producer" ? `${up} of ${report.links.length}` : "–",
        grouped.format(report.connections.reduce((total, kind) => total + kind.count, 0)),
        report.warnings.length ? { text: String(report.warnings.length), level: "warn" } : "0",
      ];
    }
  }

  // Add up the rates of several nodes, whose samples have different times, in steps of a second.
  function sum(series) {
    const slots = new Map();
    for (const points of series) {
      const mine = new Map(points.map(([ago, rate]) => [Math.round(ago), rate]));
      for (const [slot, rate] of mine) {
        const [total, parts] = slots.get(slot) ?? [0, 0];
        slots.set(slot, [total + rate, parts + 1]);
      }
    }
    // A second without a sample of some node would look like a dent.
    const complete = Math.max(0, ...[...slots.values()].map((slot) => slot[1]));
    return [...slots]
      .filter(([, slot]) => slot[1] === complete)
      .map(([ago, slot]) => [ago, slot[0]])
      .sort((a, b) => b[0] - a[0]);
  }

  // Asking

  const histories = new Map();
  let view = { key: "" };
  let asked = 0;
  let timer = null;
  let failures = 0;
  let silentSince = null;

  async function ask(path) {
    const answer = await fetch(path, {
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_SECONDS * 1000),
    });
    if (!answer.ok)
      throw Object.assign(new Error(`it answers ${answer.status} to ${path}`), { status: answer.status });
    return answer.json();
  }

  async function poll() {
    clearTimeout(timer);
    asked += 1;
    const turn = asked;
    const whole = $("whole").checked;
    try {
      const answer = await ask(whole ? "cluster.json" : "status.json");
      if (turn !== asked) return;
      failures = 0;
      silentSince = null;
      if (whole) showCluster(answer);
      else showNode(answer);
    } catch (error) {
      if (turn !== asked) return;
      showSilence(error);
    }
    if (!document.hidden)
      timer = setTimeout(poll, 1000 * Math.min(POLL_SECONDS * 1.5 ** failures, POLL_MAX_SECONDS));
  }

  function history(name, report) {
    if (!histories.has(name)) histories.set(name, new History());
    histories.get(name).add(report);
    return histories.get(name);
  }

  function show(key, build) {
    if (view.key !== key) {
      view = { key, ...build() };
      $("view").replaceChildren(view.element);
    }
    return view;
  }

  function showNode(report) {
    const address = report.addresses[0] ?? location.host;
    name(
      `${report.role[0].toUpperCase()}${report.role.slice(1)} ${address}`,
      `wsqueue ${report.version}${report.python && ` on Python ${report.python}`}`,
      report.warnings,
    );
    judge(
      report.warnings,
      report.not_ready && `This ${report.role} is not ready: ${report.not_ready}.`,
      `This ${report.role} is ready and nothing needs attention.`,
    );
    show(report.role, () => nodeView(report.role)).update(report, history("", report));
  }

  function showCluster(cluster) {
    const answering = cluster.nodes.filter((node) => !node.problem).length;
    const total = count(cluster.nodes.length, "node");
    name(
      `Cluster of ${total}`,
      `${count(cluster.consumers.length, "consumer")}, ${count(cluster.producers.length, "producer")}` +
        `, as ${location.host} sees them`,
      cluster.warnings,
    );
    const silent = cluster.nodes.length - answering;
    judge(
      cluster.warnings,
      silent &&
        `${count(silent, "node")} of ${cluster.nodes.length} ${silent === 1 ? "does" : "do"} not answer.`,
      cluster.nodes.length > 1
        ? `All ${total} answer and nothing needs attention.`
        : "This node is all that is known here.",
    );
    for (const node of cluster.nodes) if (node.report) history(node.address, node.report);
    show("cluster", clusterView).update(cluster, histories);
  }

  function name(title, subtitle, warnings) {
    say($("title"), title);
    say($("subtitle"), subtitle);
    const text = `${warnings.length ? `(${warnings.length}) ` : ""}${title} – wsqueue`;
    if (document.title !== text) document.title = text;
  }

  // The text for screen readers changes with the codes of warnings, not with the seconds in a sentence.
  let spoken = "";

  function judge(warnings, problem, well) {
    const level = problem ? "bad" : warnings.length ? "warn" : "ok";
    const news = JSON.stringify([problem, warnings.map(({ code }) => code)]);
    if (news !== spoken) {
      spoken = news;
      const sentences = warnings.map(({ text, advice }) => `${text} ${advice ?? ""}`);
      say($("spoken"), [problem || "", ...sentences].join(" ").trim() || "All is well.");
    }
    set($("verdict"), "data-level", level);
    say(
      $("headline"),
      problem || (warnings.length ? `${count(warnings.length, "warning")}.` : "All is well."),
    );
    say($("explanation"), level === "ok" ? well : "");
    const list = $("warnings");
    list.hidden = !warnings.length;
    while (list.children.length > warnings.length) list.lastChild.remove();
    for (const [index, warning] of warnings.entries()) {
      const item =
        list.children[index] ??
        list.appendChild(make("li", {}, make("strong"), make("span", { class: "advice" })));
      sayCode(item.children[0], warning.text);
      sayCode(item.children[1], warning.advice ?? "");
    }
  }

  function showSilence(error) {
    failures += 1;
    silentSince ??= new Date();
    judge([], `This node does not answer since ${clock(silentSince)}.`, "");
    const why = error.status ? ` (${error.message}).` : ".";
    const last = view.key ? " The values below are from its last answer." : "";
    say($("explanation"), `It may be down, or the network to it is${why} This page keeps trying.${last}`);
  }

  $("whole").addEventListener("change", poll);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) poll();
  });
  poll();

  // Try it

  let client = null;
  let topic = "";
  let phase = "off";
  let attempt = 0;

  const tell = (text, level = "off") => say($("demo-status"), text, level);

  // off, connecting or on
  function enter(next) {
    phase = next;
    for (const id of ["topic", "key", "key-name"]) $(id).readOnly = phase !== "off";
    for (const id of ["message", "publish-button", "picture"]) $(id).disabled = phase !== "on";
    say($("connect-button"), { off: "Connect", connecting: "Cancel", on: "Disconnect" }[phase]);
    $("connect-button").classList.toggle("quiet", phase !== "off");
    $("demo-facts").hidden = phase === "off" || !client;
  }

  function disconnect() {
    attempt += 1;
    client?.close();
    client = null;
    enter("off");
  }

  let arrivedBytes = 0;

  function arrived(content, size = 0) {
    const list = $("arrived");
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    const entry = make("li", {}, make("time", {}, clock(new Date())), content);
    entry.size = size;
    arrivedBytes += size;
    list.append(entry);
    const full = () => list.children.length > MAX_ARRIVED || arrivedBytes > MAX_ARRIVED_BYTES;
    while (full() && list.firstChild !== entry) leave(list.firstChild);
    list.hidden = false;
    $("arrived-empty").hidden = true;
    const toEnd = () => {
      list.scrollTop = list.scrollHeight;
    };
    if (atEnd) {
      toEnd();
      content.addEventListener("load", toEnd);
    }
  }

  function leave(entry) {
    arrivedBytes -= entry.size;
    const picture = entry.querySelector("img");
    if (picture) URL.revokeObjectURL(picture.src);
    entry.remove();
  }

  function received({ data, headers }) {
    if (typeof data === "string") return arrived(make("span", {}, data), data.length);
    const type = headers["content-type"] ?? "";
    const text = make("span", {}, [count(data.length, "byte"), type].filter(Boolean).join(", "));
    const kind = PICTURES.find((picture) => picture === type.split(";")[0].trim().toLowerCase());
    if (!kind) return arrived(text, data.length);
    const src = URL.createObjectURL(new Blob([data], { type: kind }));
    const picture = make("img", { src, alt: `Picture, ${text.textContent}`, decoding: "async" });
    picture.addEventListener("error", () => {
      URL.revokeObjectURL(src);
      picture.replaceWith(text);
    });
    return arrived(picture, data.length);
  }

  async function connect() {
    set($("key"), "aria-invalid", "false");
    if (!globalThis.crypto?.subtle) {
      const port = location.port || "80";
      tell(
        `This browser gives pages from ${location.host} no cryptography because they come over plain http ` +
          "from another host. Open this page over https, or through a tunnel: " +
          `ssh -L ${port}:127.0.0.1:${port} ${location.hostname}, ` +
          `and then http://127.0.0.1:${port}/.`,
        "bad",
      );
      return;
    }
    topic = $("topic").value;
    attempt += 1;
    const mine = attempt;
    enter("connecting");
    tell("Asking this node for the consumers and producers …");
    try {
      const cluster = await ask("cluster.json");
      if (mine !== attempt) return;
      // A node that is not configured is in the list too, perhaps without a port.
      for (const role of ["consumers", "producers"])
        cluster[role] = cluster[role].filter((address) => /:\d+$/.test(address));
      if (!cluster.consumers.length) {
        disconnect();
        tell(
          "This node knows no consumers. Name them in the table [monitoring] of its configuration.",
          "bad",
        );
        return;
      }
      await open(cluster);
    } catch (error) {
      // Cancelled, or shown already.
      if (mine !== attempt) return;
      disconnect();
      failed(error);
    }
  }

  // No key looks like a token, whose first part is claims.
  function secret() {
    const text = $("key").value;
    const name = $("key-name").value.trim();
    try {
      const { expires } = keyOf(text);
      return { options: { token: text }, expires };
    } catch {
      return { options: { psk: text, name } };
    }
  }

  function whyRefused({ code, message }) {
    const { options, expires } = secret();
    const again = "Make another with wsqueue token, and connect again.";
    if (code === TOKEN_ENDED) {
      const ended = new Date(expires * 1000);
      return ended <= new Date()
        ? `This token ended at ${clock(ended)} on ${day(expires)}. ${again}`
        : `The nodes take this token no more: it was revoked, or clocks differ. ${again}`;
    }
    if (options.token) return `The nodes do not know the key of this token: ${message}. ${again}`;
    const whose = options.name ? `key ${options.name} of the nodes` : "key of the cluster";
    return `This is not the ${whose}: ${message}. Enter the right one and connect again.`;
  }

  function failed(error) {
    if (error instanceof AuthenticationError) {
      tell(whyRefused(error), "bad");
      set($("key"), "aria-invalid", "true");
      $("key").focus();
    } else if (error instanceof NotAllowedError)
      tell(`This key or token does not allow that: ${error.message}.`, "bad");
    else tell(`That did not work: ${error.message}.`, "bad");
  }

  async function certificateOf(address) {
    for (let tries = 0; tries < 10; tries += 1) {
      const { nodes } = await ask("cluster.json");
      const report = nodes.find((node) => node.address === address)?.report;
      if (report) return report.certificate_sha256;
      // A node starts to ask the others when it is asked.
      await new Promise((resolve) => after(0.5, resolve));
    }
    return "";
  }

  async function open(cluster) {
    const places = {};
    const mine = new WsqueueClient({
      consumers: cluster.consumers,
      producers: cluster.producers,
      ...secret().options,
      // A browser does not show the certificate of a wss:// node; the reports have it.
      channelBinding: certificateOf,
      onState(event) {
        if (client !== mine) return;
        const how =
          { up: `connected, ${event.protocol}`, connecting: "connecting …" }[event.state] ??
          `${event.state}: ${event.reason ?? ""}`;
        if (event.state !== "connecting" || !places[event.role])
          places[event.role] = `${event.address} (${how})`;
        showPlaces();
      },
      onError: (error) => {
        if (client !== mine) return;
        disconnect();
        failed(error);
      },
    });
    client = mine;
    const index = consumerOf(topic, cluster.consumers.length);
    function showPlaces() {
      facts($("demo-facts"), [
        ["Receives from", places.consumer ?? "–"],
        [
          "Chosen by",
          `topic hash ${topicHash(topic)} modulo ${count(cluster.consumers.length, "consumer")} is ${index}`,
        ],
        [
          "Publishes through",
          places.producer ??
            (cluster.producers.length
              ? "any producer, at the first message"
              : "no producer: this node knows none"),
        ],
      ]);
    }
    showPlaces();
    enter("connecting");
    tell("Connecting …");
    for (const entry of [...$("arrived").children]) leave(entry);
    await client.subscribe(topic, received, {
      onGap: ({ missed }) => {
        const messages = missed === null ? "Some messages" : count(missed, "message");
        arrived(make("span", { class: "gap" }, `${messages} are gone.`));
      },
    }).ready;
    enter("on");
    $("arrived-empty").textContent = `Nothing yet on ${topic}.`;
    tell(`Connected. Messages that are published on ${topic} appear here.`, "ok");
    $("message").focus();
  }

  $("connect").addEventListener("submit", (event) => {
    event.preventDefault();
    if (phase !== "off") {
      disconnect();
      tell("Disconnected.");
    } else connect();
  });

  $("publish").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = $("message").value;
    $("message").value = "";
    publish(text);
  });

  async function publish(data, options) {
    const begun = performance.now();
    try {
      await client.publish(topic, data, options);
      tell(`Stored and confirmed in ${brief((performance.now() - begun) / 1000)}.`, "ok");
    } catch (error) {
      if (client) failed(error);
    }
  }

  // Files that were chosen, dropped or pasted: only the first one.
  async function publishPicture([file]) {
    if (!file || phase !== "on") return;
    const { type, size } = file;
    if (!PICTURES.includes(type)) tell(`${file.name} is no PNG, JPEG, GIF or WebP.`, "bad");
    else if (size > WINDOW_BYTES)
      tell(`The picture has ${bytes(size)}, expected at most ${bytes(WINDOW_BYTES)}.`, "bad");
    else publish(await file.arrayBuffer(), { headers: { "content-type": type } });
  }

  $("picture").addEventListener("change", async () => {
    await publishPicture($("picture").files);
    $("picture").value = "";
  });
  document.addEventListener("paste", (event) => publishPicture(event.clipboardData.files));
  // Without this the browser would leave the page for the file.
  $("try").addEventListener("dragover", (event) => event.preventDefault());
  $("try").addEventListener("drop", (event) => {
    event.preventDefault();
    publishPicture(event.dataTransfer.files);
  });
}
