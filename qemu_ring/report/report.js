// Draws each figure of the page from the description and the data that the page holds.
// vegaEmbed and lodashDebounce come with the bundle that this is put into.

const plots = JSON.parse(document.getElementById("plots").textContent);
const NARROW = 560; // pixels below which a legend is stacked

function withWidth(spec, width) {
  return spec.vconcat
    ? { ...spec, vconcat: spec.vconcat.map((view) => withWidth(view, width)) }
    : { ...spec, width };
}

async function draw(figure) {
  const { spec, choices } = plots[figure.dataset.plot];
  const target = figure.querySelector(".plot");
  const chosen = figure.querySelector("select");
  const width = target.clientWidth;
  const fitted = withWidth(spec, Math.max(width - spec.usermeta.margin, 120));
  if (width < NARROW) {
    fitted.config = { ...spec.config, legend: { ...spec.config.legend, columns: 1 } };
  }
  fitted.datasets = choices[chosen ? chosen.selectedIndex : 0].data;
  figure.drawn?.finalize();
  figure.drawnWidth = width;
  figure.drawn = await vegaEmbed(target, fitted, {
    actions: false,
    renderer: "svg",
    tooltip: { theme: "custom" },
  });
  target.dataset.state = "drawn";
}

function fail(figure, error) {
  console.error(error);
  figure.querySelector(".plot").textContent = `This plot could not be drawn: ${error}`;
}

const figures = [...document.querySelectorAll("figure[data-plot]")];
const drawAll = () =>
  figures.forEach((figure) => {
    if (figure.drawnWidth !== figure.querySelector(".plot").clientWidth) {
      draw(figure).catch((error) => fail(figure, error));
    }
  });
for (const figure of figures) {
  figure
    .querySelector("select")
    ?.addEventListener("change", () => draw(figure).catch((error) => fail(figure, error)));
}
drawAll();

// On paper nothing can be opened.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((one) => (one.open = true));
});
addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
addEventListener("resize", lodashDebounce(drawAll, 150));
