//! The report as one HTML file without scripts or external resources, for light, dark and print. All text from files is
//! escaped here.

mod canvas;
mod curves;
mod rows;

use super::document::{Block, Chart, Document, Drawing, Headline, Section, Table, Tone};

pub fn write(document: &Document) -> String {
    let title = inline(&document.title);
    let headlines: String = document.headlines.iter().map(headline).collect();
    let notes: String = document.notes.iter().map(|note| block(&Block::Note(note.clone()))).collect();
    let sections: String = document.sections.iter().map(section).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
         <style>\n{}{}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p class=\"brand\">swallow-engine</p>\n<h1>{title}</h1>\n<p class=\"lead\">{}.</p>\n\
         <ul class=\"headlines\">\n{headlines}</ul>\n{notes}</header>\n{}{sections}</main>\n</body>\n</html>\n",
        escape(&document.title),
        include_str!("style.css"),
        tones(),
        inline(&document.lead),
        contents(document),
    )
}

/// Rules that replace the placeholder colours of the SVG by those of the style sheet for light and dark.
fn tones() -> String {
    let rule = |(tone, name): &(Tone, &str)| {
        let drawn = canvas::Ink::Tone(*tone).hex();
        format!(
            "svg [fill=\"{drawn}\"]{{fill:var(--{name})}}svg [stroke=\"{drawn}\"]{{stroke:var(--{name})}}\
             .key-{name}{{background:var(--{name})}}\n"
        )
    };
    let others = canvas::Ink::OTHERS.iter().map(|(ink, name)| {
        let drawn = ink.hex();
        format!("svg [fill=\"{drawn}\"]{{fill:var(--{name})}}svg [stroke=\"{drawn}\"]{{stroke:var(--{name})}}\n")
    });
    Tone::ALL.iter().map(rule).chain(others).collect()
}

fn contents(document: &Document) -> String {
    let link = |section: &Section| format!("<a href=\"#{}\">{}</a>\n", section.id, inline(&section.title));
    let links: String = document.sections.iter().map(link).collect();
    format!("<nav aria-label=\"Sections\">\n{links}</nav>\n")
}

fn headline(headline: &Headline) -> String {
    let [label, value, of] = [&headline.label, &headline.value, &headline.detail].map(|part| inline(part));
    format!("<li><span class=\"label\">{label}</span><strong>{value}</strong><span class=\"of\">{of}</span></li>\n")
}

fn section(section: &Section) -> String {
    let blocks: String = section.blocks.iter().map(block).collect();
    let (id, title) = (section.id, inline(&section.title));
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{blocks}</section>\n"
    )
}

fn block(block: &Block) -> String {
    match block {
        Block::Text(words) => format!("<p>{}</p>\n", inline(words)),
        Block::Note(words) => format!("<p class=\"note\"><strong>Note</strong> {}</p>\n", inline(words)),
        Block::Facts(facts) => {
            let fact = |(name, fact): &(&str, String)| format!("<div><dt>{name}</dt><dd>{}</dd></div>\n", inline(fact));
            format!("<dl>\n{}</dl>\n", facts.iter().map(fact).collect::<String>())
        }
        Block::Table(content) => table(content),
        Block::Charts(charts) => {
            let figures: String = charts.iter().map(figure).collect();
            format!("<div class=\"charts{}\">\n{figures}</div>\n", if charts.len() == 1 { " alone" } else { "" })
        }
    }
}

fn table(table: &Table) -> String {
    let head: String = table.head.iter().map(|cell| format!("<th scope=\"col\">{}</th>", inline(cell))).collect();
    let row = |cells: &Vec<String>| {
        let rest: String = cells[1..].iter().map(|cell| format!("<td>{}</td>", inline(cell))).collect();
        format!("<tr><th scope=\"row\">{}</th>{rest}</tr>\n", inline(&cells[0]))
    };
    let rows: String = table.rows.iter().map(row).collect();
    let caption = inline(&table.caption);
    // A scrolling element must be reachable by keyboard.
    format!(
        "<div class=\"card scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">\n\
         <table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</div>\n",
        escape(&table.caption)
    )
}

fn figure(chart: &Chart) -> String {
    let name = format!("{}. {}", chart.title, chart.caption).replace('`', "");
    let svg = match &chart.drawing {
        Drawing::Curve(curve) => curves::draw(curve, &name),
        Drawing::Gantt(gantt) => rows::gantt(gantt, &name),
        Drawing::Bars(bars) => rows::bars(bars, &name),
        Drawing::Columns(columns) => rows::columns(columns, &name),
    };
    let key = |(tone, name): &(Tone, String)| {
        format!("<span class=\"key\"><i class=\"key-{}\"></i>{}</span>", tone.name(), inline(name))
    };
    let keys: String = chart.keys.iter().map(key).collect();
    let (title, caption) = (inline(&chart.title), inline(&chart.caption));
    format!(
        "<figure class=\"card\">\n<figcaption><strong>{title}</strong><span class=\"of\">{caption}</span>\
         <span class=\"keys\">{keys}</span></figcaption>\n\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">\n{svg}</div>\n</figure>\n",
        escape(&name)
    )
}

/// Escaped text, with the parts between backticks as code.
fn inline(text: &str) -> String {
    let part = |(at, part): (usize, &str)| match at % 2 {
        0 => escape(part),
        _ => format!("<code>{}</code>", escape(part)),
    };
    text.split('`').enumerate().map(part).collect()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_files_is_escaped() {
        let host = "<img src=x onerror='alert(1)'>&\"\0";
        assert_eq!(escape(host), "&lt;img src=x onerror=&#39;alert(1)&#39;&gt;&amp;&quot; ");
        assert_eq!(inline("on `a<b`, <i>"), "on <code>a&lt;b</code>, &lt;i&gt;");
        let cells = vec![vec!["<b>".to_string(), "`<u>`".into()]];
        let html = table(&Table { caption: "\"<c>".into(), head: vec!["<h>".into(), "s".into()], rows: cells });
        for tag in ["<b>", "<u>", "<c>", "<h>"] {
            assert!(!html.contains(tag), "{tag}: {html}");
        }
    }

    /// A placeholder without a rule would stay near black in light and dark.
    #[test]
    fn every_drawn_colour_has_a_rule() {
        let (css, rules) = (include_str!("style.css"), tones());
        let names = Tone::ALL.iter().map(|(_, name)| name).chain(canvas::Ink::OTHERS.iter().map(|(_, name)| name));
        for name in names {
            let variable = format!("--{name}:");
            assert_eq!(css.matches(&variable).count(), 2, "{name} in light and in dark");
            assert!(rules.contains(&format!("fill:var(--{name})")), "{name}");
        }
        assert!(Tone::ALL.iter().all(|(tone, name)| tone.name() == *name));
    }
}
