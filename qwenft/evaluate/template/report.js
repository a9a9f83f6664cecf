"use strict";
// Draws pictures and answers from the data in this page.  Texts of data and model are only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const records = data.records, PAGE = 24, UNREAD_PAGE = 20;
  const byId = (id) => document.getElementById(id);

  function element(name, attributes = {}, ...children) {
    const svg = ["svg", "image", "rect", "g", "title"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  }

  const fixed = (value) => (value === null ? "–" : value.toFixed(2));
  const measure = (r) => (r.absent ? "rejected" : { grounding: "IoU", detection: "F1", caption: "ROUGE-L" }[r.task]);
  const asked = (r) => r.query || (r.task === "caption" ? "caption" : "(no text)");
  const verdictOf = (r) => {
    if (r.ours.value === null) return "not judged";
    return r.ours.value >= 0.5 ? "right" : "wrong";
  };
  const change = (r) => (r.base === null || r.base.value === null || r.ours.value === null ? 0 : r.ours.value - r.base.value);

  function frame(r) {
    const [width, height] = r.wh;
    const what = `${r.truth.length} true, ${r.ours.boxes.length} answered boxes`;
    const svg = element("svg", { class: "frame", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": what });
    if (data.thumbnails[r.picture]) {
      svg.append(element("image", { href: data.thumbnails[r.picture], width, height, preserveAspectRatio: "none" }));
    }
    const boxes = [
      ...r.truth.map((box) => ["truth", box, box[4], box[5]]),
      ...(r.base ? r.base.boxes.map((box) => ["base", box, box[4], 0]) : []),
      ...r.ours.boxes.map((box) => ["ours", box, box[4], 0]),
    ];
    for (const [kind, [x1, y1, x2, y2], label, crowd] of boxes) {
      const place = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
      svg.append(element("rect", { ...place, class: "halo" }));
      svg.append(element("rect", { ...place, class: kind + (crowd ? " crowd" : "") }, element("title", {}, `${kind}: ${label}`)));
    }
    return svg;
  }

  function marks(r) {
    const line = element("p", { class: "marks" });
    const word = (value) => (r.absent ? { 0: "no", 1: "yes" }[value] : fixed(value));
    const before = r.base && r.base.value !== null ? `${word(r.base.value)} → ` : "";
    const kind = { right: "good", wrong: "bad", "not judged": "" }[verdictOf(r)];
    line.append(element("span", {}, `${measure(r)} ${before}`, element("b", { class: kind }, word(r.ours.value))));
    if (r.ours.score !== null) line.append(element("span", {}, `score ${fixed(r.ours.score)}`));
    if (r.absent) line.append(element("span", { class: "chip" }, "not in the picture"));
    if (r.ours.status !== "ok") line.append(element("span", { class: `chip ${r.ours.status === "unparsable" ? "alarm" : ""}` }, r.ours.status));
    if (r.seen) line.append(element("span", { class: "chip alarm" }, "trained on"));
    return line;
  }

  function card(r, siblings) {
    const node = element("figure", { class: "card", tabindex: "0", role: "button", "aria-label": `Open: ${asked(r)}` });
    node.append(frame(r), element("p", { class: "asked" }, asked(r)), marks(r));
    node.addEventListener("click", () => open(r, siblings));
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(r, siblings); }
    });
    return node;
  }

  // One answer, large

  const dialog = byId("detail");
  let shown = null, row = [];

  function said(title, answer) {
    const how = answer.how ? `, ${answer.how}` : "";
    return [element("dt", {}, title), element("dd", {}, `${answer.status}${how}`, element("pre", {}, answer.text || "(no text)"))];
  }

  function open(r, siblings) {
    shown = r; row = siblings;
    const close = element("button", { type: "button" }, "Close");
    close.addEventListener("click", () => dialog.close());
    const list = element("dl");
    list.append(...said(r.base ? "adapter" : "answer", r.ours));
    if (r.base) list.append(...said("base model", r.base));
    const truths = r.captions.length ? r.captions : r.truth.map((box) => `[${box.slice(0, 4).join(", ")}] ${box[4]}`);
    list.append(element("dt", {}, "truth"), element("dd", {}, truths.join("\n") || "not in the picture"));
    list.append(element("dt", {}, "sample"), element("dd", {}, `${r.id}, ${r.wh.join(" x ")} px`));
    if (r.groups.length) list.append(element("dt", {}, "kind"), element("dd", {}, r.groups.join(", ")));
    dialog.replaceChildren(element("div", { class: "top" }, element("h3", {}, asked(r)), close), frame(r), marks(r), list);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && row[row.indexOf(shown) + step];
    if (next) { event.preventDefault(); open(next, row); }
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // Galleries

  for (const place of document.querySelectorAll("[data-gallery]")) {
    const chosen = data.galleries[place.dataset.gallery].map((number) => records[number]);
    if (!chosen.length) { place.remove(); continue; }
    place.append(element("div", { class: "cards" }, ...chosen.map((r) => card(r, chosen))));
  }

  // Answers that could not be read

  const unread = records.flatMap((r) =>
    [["answer", r.ours], ["base model", r.base]].filter(([, a]) => a && a.status === "unparsable").map(([who, a]) => [r, who, a]));
  if (unread.length) {
    const list = element("div"), more = element("button", { type: "button" });
    const show = (count) => {
      const from = list.childElementCount;
      list.append(...unread.slice(from, from + count).map(([r, who, a]) => element("div", { class: "raw" },
        element("b", {}, asked(r)), element("span", { class: "note" }, ` ${who} · ${r.id}${a.how ? ` · ${a.how}` : ""}`),
        element("pre", {}, a.text || "(no text)"))));
      const left = unread.length - list.childElementCount;
      more.textContent = `Show ${Math.min(left, 200)} more of ${left}`;
      more.hidden = !left;
    };
    more.addEventListener("click", () => show(200));
    show(UNREAD_PAGE);
    byId("unread").append(list, more);
    addEventListener("beforeprint", () => show(unread.length));
  }

  // All answers, filtered

  const filters = byId("filters"), list = byId("list");
  const everyText = records.map((r) => [
    r.id, r.query, ...r.captions, ...r.truth.map((box) => box[4]), r.ours.text, r.base ? r.base.text : "",
  ].join("\n").toLowerCase());
  const count = (values) => values.reduce((found, value) => found.set(value, (found.get(value) || 0) + 1), new Map());
  const kindsOf = (r) => [r.absent ? "absent" : r.task, ...r.groups, ...(r.seen ? ["trained on"] : [])];
  const orders = {
    "as in the data": null,
    "worst first": (a, b) => (a.ours.value ?? 2) - (b.ours.value ?? 2),
    "best first": (a, b) => (b.ours.value ?? -1) - (a.ours.value ?? -1),
    "surest first": (a, b) => (b.ours.score ?? -1) - (a.ours.score ?? -1),
    ...(records.some((r) => r.base) ? { "gained most": (a, b) => change(b) - change(a), "lost most": (a, b) => change(a) - change(b) } : {}),
  };

  function fill(name, counts) {
    filters.elements[name].append(element("option", { value: "" }, "all"));
    for (const [value, number] of [...counts].sort((a, b) => b[1] - a[1]).slice(0, 60)) {
      filters.elements[name].append(element("option", { value }, `${value} (${number.toLocaleString("en")})`));
    }
  }
  fill("verdict", count(records.map(verdictOf)));
  fill("status", count(records.map((r) => r.ours.status)));
  fill("group", count(records.flatMap(kindsOf)));
  for (const name of Object.keys(orders)) filters.elements.order.append(element("option", { value: name }, name));

  let found = records, page = 0;

  function select() {
    const chosen = Object.fromEntries(new FormData(filters));
    const words = chosen.text.toLowerCase().split(/\s+/).filter(Boolean);
    found = records.filter((r, number) =>
      (!chosen.verdict || verdictOf(r) === chosen.verdict) && (!chosen.status || r.ours.status === chosen.status) &&
      (!chosen.group || kindsOf(r).includes(chosen.group)) && words.every((word) => everyText[number].includes(word)));
    if (orders[chosen.order]) found = [...found].sort(orders[chosen.order]);
    turn(0);
  }

  function turn(to) {
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(Math.max(0, to), last);
    list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((r) => card(r, found)));
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${records.length.toLocaleString("en")} answers`;
    byId("page").textContent = `page ${page + 1} of ${last + 1}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === last;
  }

  filters.addEventListener("input", select);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(select));
  byId("previous").addEventListener("click", () => turn(page - 1));
  byId("next").addEventListener("click", () => turn(page + 1));
  document.addEventListener("keydown", (event) => {
    if (dialog.open || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key === "/") { event.preventDefault(); filters.elements.text.focus(); }
    if (event.key === "n") turn(page + 1);
    if (event.key === "p") turn(page - 1);
  });
  select();
})();
