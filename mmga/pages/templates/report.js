"use strict";
// Text of identities and paths reaches the page by textContent and setAttribute alone.
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const data = read("data");
  const percent = (value, digits = 1) => (value === null ? "–" : `${(100 * value).toFixed(digits)}%`);
  const length = (value) => (Number.isFinite(value) ? value.toFixed(3) : "∞");
  const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function unpack(text, Kind) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Kind(bytes.buffer);
  }

  // Pictures ------------------------------------------------------------------------------------

  function label(side, index) {
    const of = data[side];
    const parts = [`identity ${of.pid[index]}`];
    if (of.camera.length) parts.push(`camera ${of.camera[index]}`);
    return parts.join(", ");
  }

  function picture(side, index, hidden = false) {
    const body = data.pictures && data.pictures[side][index];
    if (!body) return element("span", { class: "photo", "aria-hidden": "true" });
    const made = element("img", {
      class: "photo",
      src: `data:image/jpeg;base64,${data.pictures.header}${body}`,
      alt: hidden ? "" : `${side === "queries" ? "query" : "item"}, ${label(side, index)}`,
    });
    made.style.aspectRatio = `${data.pictures.width} / ${data.pictures.height}`;
    return made;
  }

  const pathOf = (side, index) => data[side].path[index] || "";

  // Charts --------------------------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map(); // container -> { name, views, model }
  let items = null;

  function coloured(name) {
    let text = JSON.stringify(items[name]);
    for (const [standIn, [light, night]] of data.colours) {
      text = text.replaceAll(standIn, dark.matches ? night : light);
    }
    return JSON.parse(text);
  }

  async function draw(container, name) {
    const before = drawn.get(container);
    if (before && before.views && before.views.clear) before.views.clear();
    container.replaceChildren();
    const target = element("div");
    container.append(target);
    const views = await window.Bokeh.embed.embed_item(coloured(name), target);
    leaveOut(target);
    drawn.set(container, { name, views, model: window.Bokeh.documents.at(-1) });
  }

  // Charts have their values as text: the keyboard need not stop in them.
  function leaveOut(root) {
    for (const one of root.querySelectorAll("*")) {
      if (one.hasAttribute("tabindex")) one.setAttribute("tabindex", "-1");
      if (one.shadowRoot) leaveOut(one.shadowRoot);
    }
  }

  // One after the other: which document is whose is told by order.
  let waiting = Promise.resolve();
  function schedule(container, name) {
    container.dataset.chart = name;
    waiting = waiting.then(() => draw(container, name)).then(moveMarks);
    return waiting;
  }

  function drawAll() {
    for (const container of document.querySelectorAll("[data-chart]")) {
      schedule(container, container.dataset.chart);
    }
    return waiting;
  }

  function modelOf(container) {
    const found = container && drawn.get(container);
    return found ? found.model : null;
  }

  function onChoice(name, act) {
    for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
      input.addEventListener("change", () => input.checked && act(input.value));
    }
  }

  // Thresholds ----------------------------------------------------------------------------------

  const slider = byId("threshold");
  const found = data.thresholds || null;
  const NEAREST = 4;

  function moveMarks() {
    if (!slider || !found) return;
    const at = Number(slider.value);
    const histogram = modelOf(document.querySelector('[data-chart="histogram"]'));
    const span = histogram && histogram.get_model_by_name("threshold");
    if (span) span.location = found.threshold[at];
    const container = byId("errors");
    const errors = modelOf(container);
    if (!errors) return;
    const name = drawn.get(container).name;
    const point = errors.get_model_by_name(name);
    const x = found.falseAccepts[at] / found.impostors;
    const hit = found.trueAccepts[at] / found.genuines;
    const y = name === "det" ? 1 - hit : hit;
    const shown = x > 0 && (name !== "det" || y > 0);
    if (point) point.data = shown ? { x: [x], y: [y] } : { x: [], y: [] };
  }

  function fillSamples(at) {
    const limit = found.threshold[at];
    for (const kind of ["genuine", "impostor"]) {
      const pairs = data.pairs[kind];
      let split = 0;
      while (split < pairs.distance.length && pairs.distance[split] <= limit) split += 1;
      const chosen = {
        accepted: range(Math.max(0, split - NEAREST), split).reverse(),
        rejected: range(split, Math.min(pairs.distance.length, split + NEAREST)),
      };
      for (const [side, places] of Object.entries(chosen)) {
        byId(`${side}-${kind}`).replaceChildren(
          ...places.map((place) => sample(pairs, place)),
          ...(places.length ? [] : [element("li", { class: "quiet" }, "none in the sample")]),
        );
      }
    }
  }

  const range = (start, stop) => Array.from({ length: stop - start }, (_, at) => start + at);

  function sample(pairs, place) {
    const query = pairs.query[place];
    const item = pairs.item[place];
    const two = data.pictures
      ? element("div", { class: "two" }, picture("queries", query), picture("items", item))
      : null;
    const title = [pathOf("queries", query), pathOf("items", item)].filter(Boolean).join(" and ");
    return element(
      "li",
      { title: title || null },
      two,
      element("div", {}, pairs.distance[place].toFixed(3)),
      element(
        "div",
        { class: "quiet" },
        element("bdi", {}, `${data.queries.pid[query]}${camera("queries", query)}`),
        " and ",
        element("bdi", {}, `${data.items.pid[item]}${camera("items", item)}`),
      ),
    );
  }

  const camera = (side, index) =>
    data[side].camera.length ? ` (cam.\u00a0${data[side].camera[index]})` : "";

  function moveThreshold() {
    const at = Number(slider.value);
    const wrong = found.falseAccepts[at];
    const right = found.trueAccepts[at];
    const distance = found.threshold[at].toPrecision(4);
    slider.setAttribute("aria-valuetext", `distance ${distance}`);
    byId("readout").textContent =
      `Distance ${distance}: FPR ${rate(wrong, found.impostors)} (${plural(wrong, "impostor pair")} accepted), ` +
      `TPR ${rate(right, found.genuines)} (${plural(found.genuines - right, "genuine pair")} missed)`;
    moveMarks();
    fillSamples(at);
  }

  function rate(count, total) {
    const share = (100 * count) / total;
    return `${share === 0 || share >= 1 ? share.toFixed(2) : share.toPrecision(2)}%`;
  }

  function startThresholds() {
    if (!slider || !found) return;
    slider.value = found.balanced;
    let asked = false;
    slider.addEventListener("input", () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        moveThreshold();
      });
    });
    for (const button of document.querySelectorAll("[data-rate]")) {
      const wanted = button.dataset.rate;
      let at = found.balanced;
      if (wanted !== "equal") {
        at = -1;
        found.falseAccepts.forEach((count, place) => {
          if (count / found.impostors <= Number(wanted)) at = place;
        });
        button.disabled = at < 0;
      }
      button.addEventListener("click", () => {
        slider.value = at;
        moveThreshold();
      });
    }
    moveThreshold();
  }

  // Queries -------------------------------------------------------------------------------------

  const queries = data.queries;
  const lists = {};
  const PAGE = 60;
  const state = { order: [], shown: 0, chosen: -1 };

  function unpackList(packed) {
    return {
      start: unpack(packed.start, Int32Array),
      item: unpack(packed.item, Int32Array),
      distance: unpack(packed.distance, Float32Array),
      mark: unpack(packed.mark, Uint8Array),
      elsewhere: unpack(packed.elsewhere, Uint8Array),
    };
  }

  function choice(id, name, options) {
    const select = element("select", { id });
    for (const [value, text] of options) select.append(element("option", { value }, text));
    byId("filters").append(element("div", {}, element("label", { for: id }, name), select));
    select.addEventListener("change", filter);
    return select;
  }

  const distinct = (values) =>
    [...new Set(values)].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));

  function startFilters() {
    const form = byId("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    const sorts = [
      ["hardest", "hardest first"],
      ["easiest", "easiest first"],
    ];
    if (data.reranked) {
      sorts.push(["gained", "most gained"], ["lost", "most lost"]);
    }
    choice("sort", "Order", sorts);
    const ranks = [["", "all"], ["right", "✓ right at rank 1"], ["wrong", "✗ wrong at rank 1"]];
    choice("first", "Plain ranking", ranks);
    if (data.reranked) choice("first2", "Re-ranked", ranks);
    if (queries.camera.length) {
      const names = distinct(queries.camera).map((name) => [`=${name}`, name]);
      choice("camera", "Camera of the query", [["", "all"], ...names]);
    }
    const input = element("input", { id: "identity", type: "search", spellcheck: "false" });
    form.append(element("div", {}, element("label", { for: "identity" }, "Identity"), input));
    input.addEventListener("input", filter);
    queries.columns.forEach((column, number) => {
      const names = distinct(column.values).map((name) => [`=${name}`, name]);
      choice(`column-${number}`, column.name, [["", "all"], ...names]);
    });
  }

  function filter() {
    const value = (id) => (byId(id) ? byId(id).value : "");
    const tests = [];
    for (const [id, ranks] of [["first", queries.first], ["first2", queries.first2]]) {
      if (value(id)) tests.push((at) => ranks[at] > 0 && (ranks[at] === 1) === (value(id) === "right"));
    }
    const equal = (id, values) => {
      const wanted = value(id).slice(1);
      if (value(id)) tests.push((at) => values[at] === wanted);
    };
    equal("camera", queries.camera);
    queries.columns.forEach((column, number) => equal(`column-${number}`, column.values));
    const identity = value("identity").trim().toLowerCase();
    // A whole identity is meant where there is one; else those that begin so.
    const known = identity && queries.pid.some((pid) => pid.toLowerCase() === identity);
    if (identity) {
      tests.push((at) => {
        const pid = queries.pid[at].toLowerCase();
        return known ? pid === identity : pid.startsWith(identity);
      });
    }
    state.order = range(0, queries.pid.length).filter((at) => tests.every((test) => test(at)));
    const sort = value("sort");
    const gain = (at) => (queries.ap[at] === null ? -9 : queries.ap2[at] - queries.ap[at]);
    if (sort === "easiest") {
      state.order.sort((one, other) => (queries.ap[other] ?? -1) - (queries.ap[one] ?? -1));
    } else if (sort === "gained") {
      state.order.sort((one, other) => gain(other) - gain(one));
    } else if (sort === "lost") {
      const lost = (at) => (queries.ap[at] === null ? 9 : gain(at));
      state.order.sort((one, other) => lost(one) - lost(other));
    }
    byId("found").textContent = summary();
    byId("listing").replaceChildren();
    byId("listing").scrollTop = 0;
    state.shown = 0;
    showMore();
    choose(state.order.length ? state.order[0] : -1);
  }

  function summary() {
    const valid = state.order.filter((at) => data.unmatchedCount || queries.ap[at] !== null);
    const text = `${plural(state.order.length, "query").replace("querys", "queries")} shown`;
    if (!valid.length) return `${text}.`;
    const mean = (values) => valid.reduce((sum, at) => sum + values(at), 0) / valid.length;
    const figures = (ap, first) =>
      `mAP ${percent(mean((at) => ap[at]))}, rank-1 ${percent(mean((at) => (first[at] === 1 ? 1 : 0)))}`;
    const whole = data.ofFullGallery ? " in the full gallery" : "";
    const plain = `${text}${whole}: ${figures(queries.ap, queries.first)}`;
    return data.reranked ? `${plain}; re-ranked ${figures(queries.ap2, queries.first2)}.` : `${plain}.`;
  }

  function showMore() {
    const next = state.order.slice(state.shown, state.shown + PAGE);
    byId("listing").append(...next.map(row));
    state.shown += next.length;
    const left = state.order.length - state.shown;
    byId("more").hidden = left === 0;
    byId("more").textContent = `Show ${Math.min(PAGE, left)} more of ${left.toLocaleString("en")}`;
  }

  function sign(right) {
    const [kind, mark, text] = right ? ["right", "✓", "right"] : ["wrong", "✗", "wrong"];
    return element(
      "span",
      { class: `sign ${kind}` },
      element("span", { "aria-hidden": "true" }, mark),
      element("span", { class: "hidden-visually" }, text),
    );
  }

  function row(at) {
    const valid = queries.ap[at] !== null;
    const first = queries.first[at];
    const mini = element("span", { class: "mini" }, picture("queries", at, true));
    if (!data.pictures) mini.replaceChildren(valid ? sign(first === 1) : "");
    const what = element("div", { class: "what" });
    if (valid && data.pictures) what.append(sign(first === 1), " ");
    what.append(valid ? `first right at ${first}` : "no match in the gallery");
    const button = element(
      "button",
      { type: "button", "data-query": at },
      mini,
      element(
        "span",
        {},
        element(
          "div",
          { class: "who" },
          element("bdi", {}, queries.pid[at]),
          element("bdi", { class: "quiet" }, camera("queries", at)),
        ),
        what,
      ),
      element("span", { class: "ap" }, element("span", { class: "hidden-visually" }, "AP "), percent(queries.ap[at], 0)),
    );
    button.addEventListener("click", () => {
      choose(at);
      if (matchMedia("(max-width: 1000px)").matches) byId("detail").focus();
    });
    return element("li", {}, button);
  }

  function moveInListing(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const buttons = [...byId("listing").querySelectorAll("button")];
    let place = buttons.indexOf(document.activeElement) + steps[event.key];
    if (place >= buttons.length && !byId("more").hidden) {
      showMore();
      buttons.push(...[...byId("listing").querySelectorAll("button")].slice(buttons.length));
    }
    place = Math.max(0, Math.min(buttons.length - 1, place));
    buttons[place].focus();
    choose(Number(buttons[place].dataset.query));
  }

  function choose(at) {
    state.chosen = at;
    for (const button of byId("listing").querySelectorAll("button")) {
      const mine = Number(button.dataset.query) === at;
      if (mine) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    const detail = byId("detail");
    if (at < 0) {
      detail.replaceChildren(element("p", { class: "quiet" }, "No query passes these filters."));
      return;
    }
    const shown = element("div", { class: "lists" }, strip("Before re-ranking", at, "plain"));
    if (data.reranked) shown.append(strip("After re-ranking", at, "reranked"));
    else shown.querySelector("h4").textContent = "Ranked list";
    detail.replaceChildren(subject(at), shown);
  }

  function subject(at) {
    const facts = element("dl");
    const add = (name, ...values) =>
      facts.append(element("dt", {}, name), element("dd", {}, ...values));
    const both = (one, other) => (data.reranked ? `${one}, re-ranked ${other}` : one);
    if (queries.ap[at] === null) {
      add("Matches", "none that the protocol keeps: it is in no average");
    } else {
      const again = data.reranked ? queries.ap2[at] : null;
      add("Average precision", both(percent(queries.ap[at]), percent(again)));
      add("First right at rank", both(`${queries.first[at]}`, `${queries.first2 ? queries.first2[at] : ""}`));
      add("Matches", `${queries.matches[at]}`);
    }
    queries.columns.forEach((column) =>
      facts.append(
        element("dt", {}, element("bdi", {}, column.name)),
        element("dd", {}, element("bdi", {}, column.values[at])),
      ),
    );
    add("Row", `${queries.row[at]}`);
    if (queries.path.length) add("Path", element("bdi", { class: "code" }, pathOf("queries", at)));
    const title = element("h3", {}, "Query: ", element("bdi", {}, label("queries", at)));
    return element(
      "div",
      { class: "subject" },
      data.pictures ? picture("queries", at) : null,
      element("div", {}, title, facts),
    );
  }

  function strip(title, at, name) {
    const list = lists[name];
    const made = element("ol", { class: "strip", role: "list" });
    let rank = 0;
    for (let place = list.start[at]; place < list.start[at + 1]; place += 1) {
      const kept = list.mark[place] <= 1;
      if (kept) rank += 1;
      made.append(card(list, place, kept ? rank : 0, name));
    }
    if (name === "plain" && queries.first[at] > rank) made.append(firstRight(at));
    const id = `list-${name}`;
    made.setAttribute("aria-labelledby", id);
    return element("div", {}, element("h4", { id }, title), made);
  }

  function card(list, place, rank, name) {
    const made = plainCard(list.item[place], list.mark[place], rank, list.distance[place]);
    if (rank && data.reranked) made.append(moved(list.elsewhere[place], rank, name));
    return made;
  }

  // The first right item of a query whose list shows none.
  function firstRight(at) {
    const made = plainCard(queries.firstItem[at], 1, queries.first[at], queries.firstDistance[at]);
    made.append(element("div", { class: "moved" }, "first right"));
    return made;
  }

  function plainCard(item, mark, rank, distance) {
    const kind = ["wrong", "right"][mark] || "out";
    const meaning = data.marks[mark];
    const head = element(
      "div",
      { class: "rank" },
      element("span", {}, rank ? `${rank}` : "–"),
      rank ? sign(mark === 1) : null,
    );
    const spoken = element("span", { class: "hidden-visually" }, rank ? meaning : "");
    const made = element(
      "li",
      { class: kind, title: [meaning, pathOf("items", item)].filter(Boolean).join(": ") },
      head,
      element("div", { class: "frame" }, data.pictures ? picture("items", item) : noPicture(item)),
      spoken,
      element("bdi", { class: "name" }, data.items.pid[item]),
      element("bdi", { class: "where" }, data.items.camera.length ? `cam. ${data.items.camera[item]}` : ""),
      element("div", {}, length(distance)),
    );
    if (!rank) made.append(element("div", {}, meaning.replace("left out: ", "")));
    return made;
  }

  function noPicture(item) {
    const name = pathOf("items", item).split("/").at(-1);
    return element("bdi", { class: "name" }, name || `row ${data.items.row[item]}`);
  }

  function moved(other, rank, name) {
    if (name === "plain") return element("div", {}, other ? `after: ${other}` : "after: lower");
    if (!other) return element("div", { class: "moved" }, "▲ new");
    if (other === rank) return element("div", {}, "= stays");
    const arrow = other > rank ? "▲" : "▼";
    return element("div", { class: "moved" }, `${arrow} was ${other}`);
  }

  // Start ---------------------------------------------------------------------------------------

  if (data.plain) {
    lists.plain = unpackList(data.plain);
    if (data.reranked) lists.reranked = unpackList(data.reranked);
    startFilters();
    byId("listing").addEventListener("keydown", moveInListing);
    byId("more").addEventListener("click", () => {
      const next = state.shown;
      showMore();
      byId("listing").querySelectorAll("button")[next].focus();
    });
    filter();
    startThresholds();
  }
  onChoice("matrix", (value) => {
    for (const table of document.querySelectorAll("[data-matrix]")) {
      table.hidden = table.dataset.matrix !== value;
    }
  });
  onChoice("errors", (value) => schedule(byId("errors"), value));
  onChoice("map", (value) => schedule(byId("map-chart"), value));
  document.documentElement.dataset.ready = "lists";
  document.addEventListener("DOMContentLoaded", () => {
    items = read("charts");
    // The page is shown before charts are drawn.
    requestAnimationFrame(() =>
      setTimeout(() =>
        drawAll().then(() => {
          document.documentElement.dataset.ready = "charts";
        }),
      ),
    );
    dark.addEventListener("change", drawAll);
  });
})();
