// Draws the maps of a layered gallery: its sliders pick a layer, a head and how strong the heat is.
for (const box of document.querySelectorAll(".layered")) {
  const layers = JSON.parse(box.dataset.layers);
  const sliders = box.querySelector(".sliders");
  const [layer, head, heat] = ["layer", "head", "heat"].map(
    (name) => sliders.querySelector(`input[name=${name}]`));
  const chosen = (heads) => head ? Math.min(head.value, heads) : 0;  // without heads there is no slider
  const say = (input, text) => { input.parentElement.querySelector("output").value = text; };
  const canvases = [...box.querySelectorAll("canvas")].map((canvas) => {
    const sprite = new Image();
    sprite.src = canvas.dataset.sprite;
    return { canvas, sprite, tile: document.createElement("canvas") };
  });
  const draw = ({ canvas, sprite, tile }) => {
    const [, top, rows, columns, heads] = layers[layer.value];
    const which = chosen(heads);
    if (!sprite.complete) return;
    // The tile alone first: scaled out of the sheet, its neighbours would shine in at the borders.
    tile.width = columns; tile.height = rows;
    tile.getContext("2d").drawImage(sprite, which * columns, top, columns, rows, 0, 0, columns, rows);
    canvas.width = canvas.height = 256;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "low";  // bilinear: a smoother one leaves the colour map
    context.drawImage(tile, 0, 0, 256, 256);
    canvas.style.opacity = heat.value / 100;
  };
  const update = () => {
    const [name, , , , heads] = layers[layer.value];
    const which = chosen(heads);
    say(layer, `${layer.value}: ${name}`);
    if (head) say(head, heads < 2 ? "the only one" : which ? `${which - 1} of 0 to ${heads - 1}` : `mean of ${heads}`);
    say(heat, `${heat.value} %`);
    canvases.forEach(draw);
  };
  canvases.forEach((one) => { one.sprite.onload = () => draw(one); });
  sliders.addEventListener("input", update);
  sliders.hidden = false;
  update();
}
