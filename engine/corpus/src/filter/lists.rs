//! The lists that rules name: unwanted expressions, unwanted hosts, and the phrases of footers. A file has one entry a
//! line; white space around it, blank lines and lines that begin with `#` are no part of the list.

use std::collections::HashSet;
use std::path::Path;

use aho_corasick::{AhoCorasick, MatchKind};
use engine::error::{Error, Result};

/// An entry and its line, counted from 1.
type Entry = (usize, String);

/// Hosts below which nothing is wanted.
pub struct Hosts {
    names: HashSet<String>,
}

/// Phrases by which the footer of a page is known.
pub struct Footers {
    phrases: AhoCorasick,
}

/// The entries of a file.
fn entries(path: &Path) -> Result<Vec<Entry>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::user(format!("{}: line {line} is not UTF-8; convert the file to UTF-8", path.display()))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let entry = |(number, line): (usize, &str)| (number, line.trim().to_string());
    Ok((1..).zip(text.lines()).map(entry).filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).collect())
}

/// Finds the longest of the expressions of all files that begins leftmost.
pub fn expressions(paths: &[impl AsRef<Path>]) -> Result<AhoCorasick> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(entries(path.as_ref())?.into_iter().map(|(_, entry)| entry));
    }
    let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&all);
    built.map_err(|e| Error::user(format!("{}: {e}; shorten the list", names(paths))))
}

fn names(paths: &[impl AsRef<Path>]) -> String {
    paths.iter().map(|path| path.as_ref().display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Hosts {
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all = HashSet::new();
        for path in paths.iter().map(AsRef::as_ref) {
            for (line, entry) in entries(path)? {
                let name = entry.to_ascii_lowercase();
                if name.starts_with('.') || name.contains(|c: char| "/:*@?#".contains(c) || c.is_whitespace()) {
                    let what = "is no host; write the name alone, such as example.com, which covers all names below it";
                    return Err(Error::user(format!("{}: line {line}: {entry:?} {what}", path.display())));
                }
                all.insert(name.trim_end_matches('.').to_string());
            }
        }
        Ok(Self { names: all })
    }

    /// The host of `url` if it is listed, or a part of one that is.
    pub fn find(&self, url: &str) -> Option<String> {
        let host = host(url).to_ascii_lowercase();
        let dots = host.match_indices('.').map(|(at, _)| at + 1);
        let listed = std::iter::once(0).chain(dots).any(|at| self.names.contains(&host[at..]));
        listed.then_some(host)
    }
}

/// The host of a URL, with or without a scheme (WHATWG URL, 4.4): without user, port and the dot of the root.
fn host(url: &str) -> &str {
    let url = url.trim();
    let rest =
        url.split_once("//").filter(|(scheme, _)| !scheme.contains(['/', '?', '#'])).map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let host = host.rsplit_once(':').filter(|(_, after)| port(after)).map_or(host, |(host, _)| host);
    host.strip_suffix('.').unwrap_or(host)
}

impl Footers {
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all = Vec::new();
        for path in paths {
            all.extend(entries(path.as_ref())?.into_iter().map(|(_, entry)| entry));
        }
        let phrases = AhoCorasick::new(&all);
        Ok(Self { phrases: phrases.map_err(|e| Error::user(format!("{}: {e}; shorten the list", names(paths))))? })
    }

    /// The text without the lines at its end that have one of the phrases, and without the blank lines between and
    /// before them. The last line that stays keeps its end if the text had one.
    pub fn cut<'t>(&self, text: &'t str) -> &'t str {
        let (mut rest, mut cut) = (text, false);
        while let Some(line) = rest.split_inclusive('\n').next_back() {
            let is_footer = self.phrases.is_match(line);
            if !is_footer && !line.trim().is_empty() {
                break;
            }
            cut |= is_footer;
            rest = &rest[..rest.len() - line.len()];
        }
        match cut {
            false => text,
            true if text.ends_with('\n') => rest,
            true => rest.strip_suffix('\n').map_or(rest, |rest| rest.strip_suffix('\r').unwrap_or(rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a list to a file; the folder lives as long as what is returned.
    fn list(text: &str) -> (tempfile::TempDir, [std::path::PathBuf; 1]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        std::fs::write(&path, text).unwrap();
        (folder, [path])
    }

    #[test]
    fn blank_lines_and_comments_are_no_entries() {
        let (_folder, paths) = list("\u{feff}# a comment\r\n\r\n 一つ \r\n　\n#二つ\n三つ #\n");
        let expected = [(3, "一つ".to_string()), (6, "三つ #".to_string())];
        assert_eq!(entries(&paths[0]).unwrap(), expected);
        let (_folder, paths) = list("");
        assert_eq!(entries(&paths[0]).unwrap(), []);
        let absent = entries(&paths[0].with_extension("none")).unwrap_err().to_string();
        assert!(absent.contains("list.none: it does not exist"), "{absent}");
        std::fs::write(&paths[0], b"\n\xff\xfe").unwrap();
        assert!(entries(&paths[0]).unwrap_err().to_string().contains("line 2 is not UTF-8"));
    }

    #[test]
    fn the_longest_expression_wins() {
        let (_folder, paths) = list("悪\n悪い言葉\n葉書\n");
        let found = expressions(&paths).unwrap();
        let ranges: Vec<_> = found.find_iter("悪い言葉書と悪").map(|m| m.range()).collect();
        assert_eq!(ranges, [0..12, 18..21], "not overlapping");
        let (_folder, paths) = list("");
        assert_eq!(expressions(&paths).unwrap().find_iter("悪").count(), 0);
    }

    #[test]
    fn the_host_is_taken_out_of_a_url() {
        for (url, expected) in [
            ("https://www.Example.com/a?b=//c", "www.Example.com"),
            ("http://user:pass@example.com:8080", "example.com"),
            ("//example.com./a", "example.com"),
            ("example.com/a//b", "example.com"),
            ("example.com?to=https://other.com", "example.com"),
            ("https://[2001:db8::1]:443/", "[2001:db8::1]"),
            ("https://例え.jp#a@b", "例え.jp"),
            ("", ""),
            ("https://", ""),
        ] {
            assert_eq!(host(url), expected, "{url}");
        }
    }

    #[test]
    fn a_host_covers_those_below_it() {
        let (_folder, paths) = list("Example.com\nbad.example.org\n");
        let hosts = Hosts::open(&paths).unwrap();
        let listed = |host: &str| hosts.find(&format!("https://{host}/page"));
        for host in ["example.com", "WWW.EXAMPLE.COM", "a.b.example.com", "very.bad.example.org"] {
            assert_eq!(listed(host), Some(host.to_ascii_lowercase()));
        }
        for host in ["anexample.com", "example.com.jp", "example.org", "com", ""] {
            assert_eq!(listed(host), None, "{host}");
        }
    }

    #[test]
    fn an_entry_that_is_no_host_is_refused() {
        for entry in ["https://example.com", "example.com/a", "*.example.com", ".example.com", "a b"] {
            let (_folder, paths) = list(&format!("ok.com\n{entry}\n"));
            let error = Hosts::open(&paths).err().unwrap().to_string();
            assert!(error.contains(&format!("list.txt: line 2: \"{entry}\" is no host; write")), "{error}");
        }
    }

    #[test]
    fn footers_are_cut_from_the_end() {
        let (_folder, paths) = list("Copyright\n前の記事\n");
        let footers = Footers::open(&paths).unwrap();
        for (text, expected) in [
            ("本文\n\n前の記事 次の記事\n \n(C) Copyright\n\n", "本文\n"),
            ("本文\n\nCopyright", "本文"),
            ("本文\r\n前の記事", "本文"),
            ("本文\r\n前の記事\r\n", "本文\r\n"),
            ("前の記事\n本文\n\n", "前の記事\n本文\n\n"),
            ("Copyright\n本文\nCopyright\n", "Copyright\n本文\n"),
            ("\n前の記事\n", ""),
            ("", ""),
            ("\n\n", "\n\n"),
        ] {
            assert_eq!(footers.cut(text), expected, "{text:?}");
        }
    }
}
