"use strict";
// Draws the plots in the page's own colours, and again when the reader switches between light and dark or prints.
(() => {
  const specs = JSON.parse(document.getElementById("plots").textContent);
  const places = document.querySelectorAll(".plot");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const family = getComputedStyle(document.body).fontFamily;

  const template = (isDark) => {
    const line = isDark ? "#3d4249" : "#dcd9d1";
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    return {
      layout: {
        font: { family, size: 13, color: isDark ? "#e8e6e1" : "#23262b" },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        colorway: isDark
          ? ["#5ec8bb", "#f2a65a", "#8fb3ff", "#e58bb0", "#c5d86d", "#b9a2f2"]
          : ["#0f766e", "#c2620f", "#2f5fc4", "#a83268", "#5f7512", "#6a4bc0"],
        xaxis: axis, yaxis: axis, margin: { t: 48, r: 24, b: 56, l: 64 },
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        hoverlabel: { font: { family } },
      },
      data: { bar: [{ error_y: { color: isDark ? "#e8e6e1" : "#23262b", thickness: 1.5 } }] },
    };
  };

  const draw = (isDark) => places.forEach((place) => {
    const spec = specs[place.dataset.figure];
    const layout = { height: 380, ...spec.layout, autosize: true, template: template(isDark) };
    Plotly.react(place, spec.data, layout, { responsive: true, displayModeBar: false });
  });

  const sample = "가";
  Promise.all([document.fonts.load(`400 13px ${family}`, sample), document.fonts.load(`700 13px ${family}`, sample)])
    .then(() => draw(dark.matches));
  dark.addEventListener("change", (event) => draw(event.matches));
  addEventListener("beforeprint", () => draw(false));
  addEventListener("afterprint", () => draw(dark.matches));
})();
