// Puts the live plot in place of the static picture where BokehJS can be had from this very Jupyter server
// (Panel's server extension serves it). Never asks another host; if anything is missing the picture stays.
(async (script) => {
  const figure = script.closest(".hpcnb-figure");
  const packed = figure?.querySelector(".hpcnb-packed");
  const config = document.getElementById("jupyter-config-data"); // JupyterLab and Notebook 7
  if (!packed || !config) return;
  try {
    const base = new URL(JSON.parse(config.textContent).baseUrl, location.href);
    if (base.origin !== location.origin) return;
    window.hpcnbBokeh ??= window.Bokeh ? Promise.resolve() : new Promise((loaded, failed) => {
      const tag = document.createElement("script");
      tag.src = new URL("panel-preview/static/js/bokeh.min.js", base).href;
      tag.onload = loaded;
      tag.onerror = () => failed(new Error("the Jupyter server does not serve BokehJS"));
      document.head.append(tag);
    });
    await window.hpcnbBokeh;
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const item = await new Response(stream).json();
    const minor = (version) => version.split(".", 2).join(".");
    if (minor(window.Bokeh.version) !== minor(item.doc.version)) {
      throw new Error(`the server has BokehJS ${window.Bokeh.version}, the kernel Bokeh ${item.doc.version}`);
    }
    await window.Bokeh.embed.embed_item(item, figure.querySelector(".hpcnb-live"));
    figure.querySelector(".hpcnb-static").style.display = "none";
  } catch (reason) {
    console.info(`hpcnb shows the static picture: ${reason.message ?? reason}`);
  }
})(document.currentScript);
