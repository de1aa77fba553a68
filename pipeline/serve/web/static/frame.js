// What Gradio's page leaves open: the language of the document, whoever was logged out meanwhile, and failures, of which
// it would tell in English.

document.documentElement.lang = "ko";

new PerformanceObserver((seen) => {
  for (const { name, responseStatus } of seen.getEntries()) {
    if (responseStatus === undefined || !name.includes("/gradio_api/run/")) continue;
    if (responseStatus === 401) window.location.assign("/log-in");
    const trouble = document.getElementById("trouble");
    if (trouble) trouble.hidden = responseStatus > 0 && responseStatus < 500;
  }
}).observe({ type: "resource", buffered: true });
