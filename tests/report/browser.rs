//! The report's page as a browser lays it out, on a desktop and on a phone. Skipped where there is no Chromium.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Run, read, report};
use crate::common::finish;

/// Widths in pixels. A headless window cannot be as narrow as a phone, but a frame can.
const WIDTHS: [u32; 2] = [1280, 390];

/// A script that measures the page that it is added to, and posts the result to the page around the frame.
const PROBE: &str = r#"<script>
addEventListener("load", () => {
  const root = document.documentElement;
  const shown = e => { const box = e.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
  const charts = [...document.querySelectorAll("figure svg")];
  const shapes = svg => [...svg.querySelectorAll("rect, polyline, polygon, circle")].filter(shown).length;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let least = 1e9, tiny = "";
  while (walker.nextNode()) {
    const text = walker.currentNode, e = text.parentElement;
    if (!text.data.trim() || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const scale = e instanceof SVGElement ? e.getScreenCTM().a : 1;
    const size = parseFloat(getComputedStyle(e).fontSize) * scale;
    if (size < least) { least = size; tiny = text.data; }
  }
  const drawn = new Set(charts.flatMap(svg => [...svg.querySelectorAll("rect, polyline, text")].map(e => {
    const style = getComputedStyle(e); return style.fill == "none" ? style.stroke : style.fill; })));
  parent.postMessage({
    inner: innerWidth, scroll: root.scrollWidth, errors: window.faults, least, tiny,
    charts: charts.map(svg => ({ shown: shown(svg), shapes: shapes(svg) })),
    unmapped: [...drawn].filter(colour => /^rgb\(1, [23], /.test(colour)),
  }, "*");
});
</script>"#;

/// A script that counts errors; it comes before all else, so that none is missed.
const COUNTER: &str = "<script>window.faults = 0; onerror = () => { window.faults += 1; };</script>";

#[test]
fn the_page_is_readable_on_a_desk_and_on_a_phone() {
    let Some(chromium) = chromium() else {
        eprintln!("skipped: there is no chromium in PATH");
        return;
    };
    let run = Run::new();
    report(&run.dir(), &[]).succeeded();
    let html = read(&run.dir(), "efficiency.html");
    let probed = html.replace("<head>", &format!("<head>{COUNTER}")).replace("</body>", &format!("{PROBE}</body>"));
    std::fs::write(run.tmp.path().join("probed.html"), probed).unwrap();
    for width in WIDTHS {
        let seen = look(&chromium, run.tmp.path(), width);
        println!("{seen:#}");
        assert_eq!(seen["inner"], width);
        assert!(seen["scroll"].as_u64() <= seen["inner"].as_u64(), "it scrolls sideways at {width}: {seen}");
        assert_eq!(seen["errors"], 0);
        assert!(seen["least"].as_f64().unwrap() >= 9.0, "too small at {width}: {seen}");
        assert_eq!(seen["unmapped"].as_array().map(Vec::len), Some(0), "colours without a rule: {seen}");
        let charts = seen["charts"].as_array().unwrap();
        assert_eq!(charts.len(), 8);
        for chart in charts {
            assert_eq!(chart["shown"], true, "{seen}");
            assert!(chart["shapes"].as_u64().unwrap() >= 1, "an empty chart: {seen}");
        }
        // The pipeline has each forward and backward of two ranks, the last chart two bars.
        assert!(charts[6]["shapes"].as_u64().unwrap() >= 16 && charts[7]["shapes"].as_u64().unwrap() >= 4, "{seen}");
    }
}

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("chromium")).find(|program| program.is_file())
}

/// The measurements of the page in a frame of this width.
fn look(chromium: &Path, dir: &Path, width: u32) -> Value {
    let frame = format!(
        "<!doctype html><body>\
         <iframe src=\"probed.html\" style=\"border:0;width:{width}px;height:900px\"></iframe><pre></pre>\
         <script>addEventListener('message', e => {{\
         document.querySelector('pre').textContent = JSON.stringify(e.data); }})</script>"
    );
    let page = dir.join("frame.html");
    std::fs::write(&page, frame).unwrap();
    let mut command = Command::new(chromium);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.args(["--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", dir.join("chromium").display()));
    let dom = finish(command.arg(format!("file://{}", page.display()))).succeeded().stdout;
    let json = dom.split_once("<pre>").and_then(|(_, rest)| rest.split_once("</pre>")).expect("the frame's page").0;
    let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {dom}"))
}
