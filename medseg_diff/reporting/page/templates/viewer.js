// The viewer of a case: NiiVue over the volumes that the page holds. Without WebGL2 the page keeps to its pictures.
"use strict";
(async function () {
  const scene = JSON.parse(document.getElementById("scene").textContent);
  const canvas = document.getElementById("canvas");
  const section = document.getElementById("viewer");
  const all = (selector) => Array.from(section.querySelectorAll(selector));
  if (!document.createElement("canvas").getContext("webgl2") || !(scene.images.length + scene.overlays.length)) return;
  section.hidden = false;
  document.getElementById("without").hidden = true;

  const viewer = new niivue.Niivue({
    isRadiologicalConvention: true,
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.55, 0.6, 0.65, 0.8],
    crosshairWidth: 0.4,
    crosshairWidthUnit: "mm",
    crosshairGap: 4,
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER, // 3D by choice alone: slow without a graphics card
    dragAndDropEnabled: false,
    loadingText: "",
    logLevel: "error",
    viewModeHotKey: "",
    clipPlaneHotKey: "",
    isAlphaClipDark: true,
  });
  await viewer.attachToCanvas(canvas);

  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  function ramp(colours) { // clear at 0
    const map = { R: [], G: [], B: [], A: [], I: [] };
    colours.forEach((colour, place) => {
      const [red, green, blue] = parts(colour);
      map.R.push(red); map.G.push(green); map.B.push(blue);
      map.A.push(place === 0 ? 0 : 255);
      map.I.push(Math.round((255 * place) / (colours.length - 1)));
    });
    return map;
  }
  function table(colours, names) { // of labels: 0 is clear
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    colours.forEach((colour, place) => {
      const [red, green, blue] = parts(colour);
      map.R.push(red); map.G.push(green); map.B.push(blue);
      map.A.push(255); map.I.push(place + 1); map.labels.push(names[place]);
    });
    return map;
  }
  const load = (each, more) => niivue.NVImage.loadFromBase64({ base64: each.file, name: each.name + ".nii.gz", ...more });

  // Volumes are unpacked when they are first shown: a page opens as fast as its first scan.
  const images = [], overlays = [];
  async function image(place) {
    const each = scene.images[place];
    images[place] ??= await load(each, { colormap: "gray", cal_min: each.low, cal_max: each.high });
    return images[place];
  }
  async function overlay(place) {
    if (overlays[place]) return overlays[place];
    const each = scene.overlays[place];
    let volume;
    if (each.names.length) {
      volume = await load(each, { cal_min: 0, cal_max: each.high });
      volume.hdr.intent_code = 1002; // NIfTI's word for labels: only these get outlines
      volume.setColormapLabel(table(each.colours, each.names));
    } else {
      viewer.addColormap("map" + place, ramp(each.colours));
      volume = await load(each, { colormap: "map" + place, cal_min: each.low, cal_max: each.high });
      volume.colormapType = 2; // the ramp starts at 0; what is below cal_min is clear
    }
    viewer.addVolume(volume);
    overlays[place] = volume;
    return volume;
  }
  async function show(place, opacity) {
    if (!opacity && !overlays[place]) return;
    const volume = await overlay(place);
    viewer.setOpacity(viewer.volumes.indexOf(volume), opacity);
  }
  if (scene.images.length) viewer.addVolume(await image(scene.first));
  else await overlay(0); // of a page without scans the first mask is the ground
  for (const [place, each] of scene.overlays.entries()) await show(place, each.shown ? each.opacity : 0);

  const said = (number) => (Math.abs(number) >= 100 ? number.toFixed(0) : number.toPrecision(3));

  // The scan, and its window.
  let shown = scene.first;
  const low = document.getElementById("low"), high = document.getElementById("high");
  const words = document.getElementById("window");
  const value = (each, step) => each.least + ((each.most - each.least) * step) / 255;
  const step = (each, number) => Math.round((255 * (number - each.least)) / Math.max(each.most - each.least, 1e-9));
  function say() {
    words.textContent = said(images[shown].cal_min) + " to " + said(images[shown].cal_max);
  }
  function sliders() {
    low.value = step(scene.images[shown], images[shown].cal_min);
    high.value = step(scene.images[shown], images[shown].cal_max);
    say();
  }
  function windowed() {
    const each = scene.images[shown];
    images[shown].cal_min = value(each, Math.min(+low.value, +high.value - 1));
    images[shown].cal_max = value(each, Math.max(+high.value, +low.value + 1));
    say();
    viewer.updateGLVolume();
  }
  if (scene.images.length) {
    sliders();
    low.addEventListener("input", windowed);
    high.addEventListener("input", windowed);
    viewer.onIntensityChange = sliders;
  }
  all("input[name=image]").forEach((input) =>
    input.addEventListener("change", async () => {
      const next = await image(+input.value);
      viewer.removeVolume(images[shown]);
      shown = +input.value;
      viewer.addVolume(next);
      viewer.setVolume(next, 0);
      sliders();
    })
  );

  // Overlays: shown or not, and how strongly.
  const outline = document.getElementById("outline");
  all("[data-overlay]").forEach((field) => {
    const place = +field.dataset.overlay;
    const box = field.querySelector("input[type=checkbox]"), slider = field.querySelector("input[type=range]");
    // As outlines, masks are all but clear inside; their edges are drawn whatever their opacity.
    const opacity = () => (outline.checked && scene.overlays[place].names.length ? 0.01 : +slider.value);
    const set = () => show(place, box.checked ? opacity() : 0);
    box.addEventListener("change", set);
    outline.addEventListener("change", set);
    slider.addEventListener("input", () => { box.checked = true; set(); });
  });
  outline.addEventListener("change", () => viewer.setAtlasOutline(outline.checked ? 1 : 0));

  // Views, and the slices to review.
  const kinds = [viewer.sliceTypeMultiplanar, viewer.sliceTypeAxial, viewer.sliceTypeCoronal, viewer.sliceTypeSagittal, viewer.sliceTypeRender];
  const views = all("input[name=view]");
  views.forEach((input) => input.addEventListener("change", () => viewer.setSliceType(kinds[+input.value])));
  function go(to) {
    viewer.scene.crosshairPos = viewer.mm2frac(to);
    viewer.updateGLVolume();
    viewer.createOnLocationChange();
  }
  all("[data-review]").forEach((button) => button.addEventListener("click", () => go(scene.review[+button.dataset.review].at_mm)));

  // Where the crosshair is, in words.
  const where = document.getElementById("where");
  viewer.onLocationChange = (location) => {
    const at = location.mm, sides = [["L", "R"], ["P", "A"], ["I", "S"]];
    const point = sides.map(([less, more], axis) => (at[axis] < 0 ? less : more) + " " + Math.abs(at[axis]).toFixed(1)).join("  ");
    const values = viewer.volumes.map((volume, place) => [volume, location.values[place]])
      .filter(([volume, found]) => found && (volume.opacity > 0 || images.includes(volume)))
      .map(([volume, found]) => volume.name.replace(".nii.gz", "").replaceAll("_", " ") + " " + said(Number(found.value)));
    where.textContent = point + " mm" + (values.length ? " · " + values.join(" · ") : "");
  };

  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], PageUp: [0, 1, 0], PageDown: [0, -1, 0] };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (moves[event.key]) {
      viewer.moveCrosshairInVox(...moves[event.key]);
    } else if (/^[1-9]$/.test(event.key)) {
      const field = all("[data-overlay]")[+event.key - 1];
      if (field) field.querySelector("input[type=checkbox]").click();
    } else if (event.key === "v" || event.key === "V") {
      const next = (views.findIndex((input) => input.checked) + 1) % views.length;
      views[next].click();
    } else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  if (scene.review.length) go(scene.review[0].at_mm);
  else viewer.createOnLocationChange();
  viewer.drawScene();
  document.documentElement.dataset.ready = "yes";
})();
