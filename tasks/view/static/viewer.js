"use strict";
/* The page of `slidesam view`. The server renders tiles; this moves them, and shows the row of an object that is clicked. */
(async () => {
  const find = (id) => document.getElementById(id);
  const get = async (path) => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
    return answer.json();
  };
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const number = (value, digits = 4) => (Number.isInteger(value) ? String(value) : String(+value.toPrecision(digits)));
  const later = (task, delay = 250) => {
    let timer;
    return () => { clearTimeout(timer); timer = setTimeout(task, delay); };
  };
  const showProblem = (text) => {
    find("problem").textContent = text;
    find("problem").hidden = !text;
  };

  let info;
  try {
    info = await get("info.json");
  } catch (error) {
    showProblem(`The viewer doesn't answer (${error.message}): start slidesam view again and open the address that it prints.`);
    return;
  }
  const [mppY, mppX] = info.mpp || [null, null];
  // Objects whose diameter on the screen is below the first are shown as density, above the second by their outlines.
  const FADE = [3.5, 4.5], USUAL_DIAMETER = 20;
  const state = { label: info.labels[0].name, mode: "auto", opacity: 1, hidden: new Set(), diameter: USUAL_DIAMETER, hasDensity: false, shown: null };

  find("name").textContent = info.name;
  find("name").title = info.name;
  const size = mppX ? `${number(info.width * mppX / 1000, 3)} × ${number(info.height * mppY / 1000, 3)} mm, ${number(mppX, 3)} µm per px` : "pixel size unknown";
  const describe = () => {
    const objects = info.labels.find((label) => label.name === state.label).objects;
    find("facts").textContent = `${objects.toLocaleString("en")} ${state.label} · ${info.width} × ${info.height} px (${size})`;
  };
  for (const note of info.notes) find("notes").append(make("p", { textContent: note }));

  const viewer = OpenSeadragon({
    element: find("view"), drawer: "canvas", showNavigationControl: false, showNavigator: innerWidth > 760, navigatorId: "map", navigatorAutoFade: false, animationTime: 0.4, maxZoomPixelRatio: 16, visibilityRatio: 0.5, gestureSettingsMouse: { clickToZoom: false },
    gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true }, imageLoaderLimit: 6, timeout: 60000, preserveImageSizeOnResize: true,
  });
  // The small map shows the image alone.
  if (viewer.navigator) {
    const add = viewer.navigator.addTiledImage;
    viewer.navigator.addTiledImage = function (options) { if (options.originalTiledImage === layers.image || !layers.image) return add.call(this, options); };
  }
  viewer.canvas.setAttribute("aria-label", "Slide");
  // Flipping and turning would make scale and coordinates wrong.
  viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = "rRfF".includes(event.originalEvent.key) || event.preventDefaultAction; });

  /* Layers: the image, the density, the outlines, from below. */
  const layers = { image: null, density: null, outlines: null };
  const order = Object.keys(layers);
  const pyramid = (factor, url) => {
    const width = info.width * factor, height = info.height * factor;
    const maxLevel = Math.ceil(Math.log2(Math.max(width, height)));
    return {
      width, height, tileSize: info.tile, tileOverlap: 0, maxLevel, minLevel: Math.max(0, maxLevel - Math.ceil(Math.log2(Math.max(width, height, info.tile) / info.tile))),
      getTileUrl: (level, x, y) => url(maxLevel - level, y, x),
    };
  };
  const show = (layer, source, width = 1) => new Promise((resolve) => {
    const old = layers[layer];
    const below = order.slice(0, order.indexOf(layer)).filter((name) => layers[name]);
    const index = below.length ? viewer.world.getIndexOfItem(layers[below[below.length - 1]]) + 1 : 0;
    viewer.addTiledImage({
      tileSource: source, index: old ? viewer.world.getIndexOfItem(old) + 1 : index, width, opacity: old ? old.getOpacity() : layer === "image" ? 1 : 0,
      success: ({ item }) => {
        layers[layer] = item;
        // The old picture stays until the new one is there.
        const remove = () => { if (old && viewer.world.getIndexOfItem(old) >= 0) viewer.world.removeItem(old); };
        item.addOnceHandler("fully-loaded-change", remove);
        setTimeout(remove, 1500);
        update();
        resolve(item);
      },
      error: (event) => { if (layer === "image") showProblem(event.message); resolve(null); },
    });
  });
  const hide = (layer) => {
    if (layers[layer]) viewer.world.removeItem(layers[layer]);
    layers[layer] = null;
  };
  const query = (pairs) => { const text = new URLSearchParams(pairs).toString(); return text ? `?${text}` : ""; };
  const hiddenPairs = () => [...state.hidden].map((name) => ["hide", name]);
  const labelPath = () => `labels/${encodeURIComponent(state.label)}`;

  const showImage = () => {
    const shown = info.channels.filter((channel) => channel.is_shown);
    find("view").classList.toggle("empty", !shown.length);
    if (!info.is_rgb && !shown.length) { layers.image.setOpacity(0); return; }
    const text = info.is_rgb ? "" : shown.map((channel) => [channel.number, channel.colour, channel.low, channel.high].join("_")).join(",");
    const pairs = text ? [["c", text]] : [];
    return show("image", pyramid(1, (level, row, column) => `image/${level}/${row}/${column}.jpg${query(pairs)}`)).then((item) => item && item.setOpacity(1));
  };
  const showOutlines = () => {
    const path = labelPath(), pairs = hiddenPairs();
    return show("outlines", pyramid(info.fineness, (level, row, column) => `${path}/outlines/${level}/${row}/${column}.png${query(pairs)}`));
  };
  const showDensity = async () => {
    const facts = await get(`${labelPath()}/density.json${query(hiddenPairs())}`);
    state.hasDensity = Boolean(facts);
    document.querySelector("[name=mode][value=density]").disabled = !facts;
    if (!facts) { hide("density"); return; }
    find("legend-high").textContent = `${(+number(facts.highest, 2)).toLocaleString("en")} per ${facts.unit}`;
    find("legend").firstElementChild.style.background = `linear-gradient(to right, ${facts.stops.map((stop) => `rgb(${stop})`).join(",")})`;
    await show("density", { type: "image", url: `${labelPath()}/density.png${query(hiddenPairs())}`, buildPyramid: false }, facts.width / info.width);
  };
  const showObjects = async () => {
    try {
      await Promise.all([showOutlines(), showDensity()]);
    } catch (error) { showProblem(error.message); }
    update();
  };

  /* What depends on the zoom: which layer of the objects is seen, the scale bar, the mark of the chosen object. */
  const zoom = () => layers.image.viewportToImageZoom(viewer.viewport.getZoom(true));
  const update = () => {
    if (!layers.image) return;
    const z = zoom(), seen = state.diameter * z;
    let outlines = Math.min(1, Math.max(0, (seen - FADE[0]) / (FADE[1] - FADE[0])));
    if (!state.hasDensity || state.mode === "outlines") outlines = 1;
    let density = 1 - outlines;
    if (state.mode === "density" && state.hasDensity) [outlines, density] = [0, 1];
    if (state.mode === "none") outlines = density = 0;
    if (layers.outlines) layers.outlines.setOpacity(outlines * state.opacity);
    if (layers.density) layers.density.setOpacity(density * state.opacity);
    find("legend").hidden = !(state.hasDensity && density > 0);
    viewer.drawer.setImageSmoothingEnabled(z < 1.5);
    drawScale(z);
    drawMark();
  };
  const drawScale = (z) => {
    const unit = mppX || 1, most = 140 * unit / z;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((step) => step * power <= most) * power;
    find("scale-bar").style.width = `${length * z / unit}px`;
    find("scale-text").textContent = !mppX ? `${number(length)} px` : length >= 1000 ? `${number(length / 1000)} mm` : `${number(length)} µm`;
  };
  const drawMark = () => {
    const origin = layers.image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0)), z = zoom();
    find("mark").firstElementChild.setAttribute("transform", `translate(${origin.x} ${origin.y}) scale(${z})`);
  };
  for (const event of ["update-viewport", "resize", "open"]) viewer.addHandler(event, update);

  /* Pixels under the pointer. */
  const pixelAt = (position) => layers.image.viewerElementToImageCoordinates(position);
  const tracker = new OpenSeadragon.MouseTracker({
    element: viewer.container, moveHandler: (event) => {
      if (!layers.image) return;
      const at = pixelAt(event.position), x = Math.floor(at.x), y = Math.floor(at.y);
      const isInside = x >= 0 && y >= 0 && x < info.width && y < info.height;
      find("position").textContent = !isInside ? "" : `x ${x}, y ${y} px` + (mppX ? ` · ${(x * mppX).toFixed(1)}, ${(y * mppY).toFixed(1)} µm` : "");
    },
    leaveHandler: () => { find("position").textContent = ""; },
  });
  tracker.setTracking(true);

  /* Objects. */
  const showObject = (object) => {
    const path = find("mark").querySelector("path");
    state.shown = object && object.number ? object.number : null;
    find("object-section").hidden = !state.shown;
    path.setAttribute("d", object ? object.rings.map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`).join("") : "");
    if (!state.shown) return;
    find("object-name").textContent = `${state.label} ${object.number}`;
    find("row").replaceChildren(...(object.row || []).filter(([name]) => name !== "label").map(([name, value, meaning]) =>
      make("tr", { title: meaning }, make("th", { textContent: name.replaceAll("_", " "), scope: "row" }),
        make("td", { textContent: value === null ? "–" : typeof value === "number" ? number(value) : typeof value === "boolean" ? (value ? "yes" : "no") : String(value) }))));
    find("object-note").hidden = Boolean(object.row);
    find("object-note").replaceChildren(...(object.way_to_table ? ["There is no table of the objects. Make it by ", make("code", { textContent: object.way_to_table })] : ["The table has no row of it."]));
    openPanel(true);
    find("panel").scrollTop = 0;
  };
  const choose = async (path) => {
    try {
      const object = await get(path);
      showObject(object);
      return object;
    } catch (error) { showProblem(error.message); return null; }
  };
  viewer.addHandler("canvas-click", (event) => {
    if (!event.quick || !layers.image) return;
    const at = pixelAt(event.position), x = Math.floor(at.x), y = Math.floor(at.y);
    if (x < 0 || y < 0 || x >= info.width || y >= info.height) showObject(null);
    else choose(`${labelPath()}/at/${y}/${x}`);
  });
  find("search").addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = find("number").value.trim();
    const note = find("search-note");
    note.textContent = "";
    if (!/^[0-9]{1,18}$/.test(wanted) || +wanted === 0) { note.textContent = "Write the number of an object, such as 1."; return; }
    const object = await choose(`${labelPath()}/objects/${wanted}`);
    if (!object) return;
    if (!object.box) {
      showObject(null);
      note.replaceChildren(...(object.way_to_table ? ["Without a table objects can't be found by number. Make it by ", make("code", { textContent: object.way_to_table })] : [`There is no object ${wanted}.`]));
      return;
    }
    const [y0, x0, y1, x1] = object.box, side = Math.max(10 * Math.max(y1 - y0, x1 - x0), 60);
    const rectangle = layers.image.imageToViewportRectangle((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side);
    viewer.viewport.fitBounds(rectangle);
  });
  find("close-object").addEventListener("click", () => showObject(null));

  /* The panel. */
  const openPanel = (isOpen) => {
    find("panel").hidden = !isOpen;
    find("panel-button").setAttribute("aria-expanded", String(isOpen));
    keepFree();
  };
  // What is looked for is centred in the part of the view that the panel leaves free.
  const keepFree = () => {
    const box = find("panel").getBoundingClientRect(), isNarrow = innerWidth <= 760;
    viewer.viewport.setMargins(isNarrow ? { bottom: find("panel").hidden ? 0 : innerHeight - box.top } : { right: find("panel").hidden ? 0 : innerWidth - box.left });
  };
  viewer.addHandler("resize", () => keepFree());
  const setMode = (mode) => {
    state.mode = mode;
    document.querySelector(`[name=mode][value=${mode}]`).checked = true;
    update();
  };
  for (const button of document.querySelectorAll("[name=mode]")) button.addEventListener("change", () => setMode(button.value));
  find("opacity").addEventListener("input", () => { state.opacity = +find("opacity").value; update(); });
  find("zoom-in").addEventListener("click", () => viewer.viewport.zoomBy(2));
  find("zoom-out").addEventListener("click", () => viewer.viewport.zoomBy(0.5));
  find("home").addEventListener("click", () => viewer.viewport.goHome());
  find("panel-button").addEventListener("click", () => openPanel(find("panel").hidden));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { showObject(null); viewer.canvas.focus(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=radio]):not([type=checkbox]), select")) return;
    const act = {
      o: () => setMode(state.mode === "outlines" ? "auto" : "outlines"), m: () => setMode(state.mode === "density" ? "auto" : "density"),
      a: () => setMode("auto"), h: () => setMode(state.mode === "none" ? "auto" : "none"), p: () => openPanel(find("panel").hidden),
      "0": () => viewer.viewport.goHome(), "+": () => viewer.viewport.zoomBy(1.5), "=": () => viewer.viewport.zoomBy(1.5), "-": () => viewer.viewport.zoomBy(1 / 1.5),
      "/": () => { openPanel(true); find("number").focus(); find("number").select(); },
    }[event.key];
    if (act) { event.preventDefault(); event.stopPropagation(); act(); }
  }, true);

  const redrawObjects = later(showObjects);
  const listClasses = (classes) => find("classes").replaceChildren(...classes.map((one) => {
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(one.name) });
    box.addEventListener("change", () => { state.hidden[box.checked ? "delete" : "add"](one.name); redrawObjects(); });
    const line = make("i");
    line.style.background = `#${one.colour}`;
    return make("li", {}, make("label", {}, box, one.name), line, make("span", { className: "count", textContent: one.objects.toLocaleString("en") }));
  }));
  const redrawImage = later(showImage);
  const listChannels = () => find("channels").replaceChildren(...info.channels.map((channel) => {
    const box = make("input", { type: "checkbox", checked: channel.is_shown });
    box.addEventListener("change", () => { channel.is_shown = box.checked; redrawImage(); });
    const colour = make("input", { type: "color", value: `#${channel.colour}`, title: `Colour of ${channel.name}` });
    colour.addEventListener("input", () => { channel.colour = colour.value.slice(1); redrawImage(); });
    const [least, most] = channel.limits;
    const slider = (key, words) => {
      const range = make("input", { type: "range", min: least, max: most, step: (most - least) / 500 || 1, value: channel[key], title: `${words}: ${number(channel[key])}` });
      range.setAttribute("aria-label", `${channel.name}: ${words}`);
      range.addEventListener("input", () => { channel[key] = +range.value; range.title = `${words}: ${number(channel[key])}`; redrawImage(); });
      return range;
    };
    return make("li", {}, make("label", {}, box, channel.name), colour, make("span", { className: "window" }, slider("low", "shown black"), slider("high", "fully bright")));
  }));
  const chooseLabel = async () => {
    showObject(null);
    state.hidden.clear();
    hide("density");
    describe();
    try {
      const summary = await get(`${labelPath()}/summary.json`);
      state.diameter = summary.diameter || USUAL_DIAMETER;
      listClasses(summary.classes);
      find("table-note").hidden = !summary.way_to_table;
      find("table-note").replaceChildren("No density, classes and rows without a table of the objects. Make it by ", make("code", { textContent: summary.way_to_table || "" }));
    } catch (error) { showProblem(error.message); }
    await showObjects();
  };
  for (const label of info.labels) find("label").append(make("option", { value: label.name, textContent: label.name }));
  find("label-choice").hidden = info.labels.length < 2;
  find("label").addEventListener("change", () => { state.label = find("label").value; chooseLabel(); });
  find("channel-section").hidden = info.is_rgb;
  listChannels();
  openPanel(innerWidth > 760);

  /* A tile that can't be read says why, once. */
  const failed = new Set();
  viewer.addHandler("tile-load-failed", async (event) => {
    if (failed.size > 3 || failed.has(event.tile.getUrl())) return;
    failed.add(event.tile.getUrl());
    try {
      const answer = await fetch(event.tile.getUrl());
      if (!answer.ok) showProblem(`A part can't be shown: ${await answer.text()}`);
    } catch { showProblem("The viewer doesn't answer any more: start slidesam view again and open the address that it prints."); }
  });

  await showImage();
  viewer.viewport.goHome(true);
  await chooseLabel();
  viewer.canvas.focus();
  document.body.dataset.ready = "yes";
  window.slidesamView = { viewer, layers, state };
})();
