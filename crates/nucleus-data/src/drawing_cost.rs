//! How much a drawing unfolds to, found before it is drawn.
//!
//! A short SVG can name the same group again and again, from groups that are themselves named again and again, and a renderer copies
//! each. Here the copies are counted without making them: the cost of an element is 1, that of its children, and that of whatever
//! it refers to by `href`, `url(#…)` in an attribute, or `url(#…)` in a style sheet's rule that may select it.

use std::collections::HashMap;

use resvg::usvg::roxmltree::{Document, Node, NodeId};

/// Most elements that a drawing may unfold to.
pub const MAX_ELEMENTS: u64 = 100_000;

/// Deepest nesting of elements, references included.
pub const MAX_DEPTH: usize = 200;

/// Why a drawing is not drawn.
pub type Refusal = String;

/// Elements whose cost the size of the picture does not bound, or that are not drawn.
const REFUSED: [(&str, &str); 6] = [
    ("text", "has text, which is not drawn: convert it to paths"),
    ("image", "embeds an image, which is not drawn"),
    ("feImage", "embeds an image, which is not drawn"),
    ("feTurbulence", "uses feTurbulence, whose cost has no bound"),
    ("feConvolveMatrix", "uses feConvolveMatrix, whose cost has no bound"),
    ("feMorphology", "uses feMorphology, whose cost has no bound"),
];

/// Checks that drawing `document` is bounded.
///
/// # Errors
/// What makes it too costly, or what it needs and is not supported.
pub fn check(document: &Document<'_>) -> Result<(), Refusal> {
    for node in document.descendants().filter(Node::is_element) {
        if let Some((_, problem)) = REFUSED.iter().find(|(name, _)| *name == node.tag_name().name()) {
            return Err((*problem).to_owned());
        }
    }
    let mut costs = Costs::new(document);
    let total = costs.of(document.root_element(), 0)?;
    if total > MAX_ELEMENTS {
        return Err(format!("unfolds to more than {MAX_ELEMENTS} elements"));
    }
    Ok(())
}

/// A rule of a style sheet with references: the words of its selector and the ids in its body.
struct Rule<'a> {
    selector: Vec<&'a str>,
    targets: Vec<&'a str>,
}

struct Costs<'a, 'input> {
    by_id: HashMap<&'a str, Node<'a, 'input>>,
    rules: Vec<Rule<'a>>,
    /// Cost and depth of finished elements; `None` while one is being counted.
    known: HashMap<NodeId, Option<(u64, usize)>>,
}

impl<'a, 'input> Costs<'a, 'input> {
    fn new(document: &'a Document<'input>) -> Costs<'a, 'input> {
        let elements = || document.descendants().filter(Node::is_element);
        let by_id = elements().filter_map(|node| Some((node.attribute("id")?, node))).collect();
        let sheets =
            elements().filter(|node| node.tag_name().name() == "style").filter_map(|node| node.text());
        Costs { by_id, rules: sheets.flat_map(rules).collect(), known: HashMap::new() }
    }

    /// The number of elements that `node` unfolds to, saturating above the limit.
    fn of(&mut self, node: Node<'a, 'input>, depth: usize) -> Result<u64, Refusal> {
        match self.known.get(&node.id()) {
            // A reference to itself: the renderer follows none.
            Some(None) => return Ok(1),
            Some(Some((cost, below))) => {
                check_depth(depth + below)?;
                return Ok(*cost);
            }
            None => {}
        }
        check_depth(depth)?;
        self.known.insert(node.id(), None);
        let mut cost = 1u64;
        let mut below = 0;
        let mut add = |costs: &mut Self, child: Node<'a, 'input>, times: u64| -> Result<(), Refusal> {
            cost = cost.saturating_add(costs.of(child, depth + 1)?.saturating_mul(times));
            if let Some(Some((_, depth))) = costs.known.get(&child.id()) {
                below = below.max(depth + 1);
            }
            Ok(())
        };
        for child in node.children().filter(Node::is_element) {
            add(self, child, 1)?;
        }
        for (target, times) in self.references(node) {
            if let Some(&target) = self.by_id.get(target) {
                add(self, target, times)?;
            }
        }
        let cost = cost.min(MAX_ELEMENTS + 1);
        self.known.insert(node.id(), Some((cost, below)));
        Ok(cost)
    }

    /// What an element refers to, and how often it is drawn for it.
    fn references(&self, node: Node<'a, 'input>) -> Vec<(&'a str, u64)> {
        let mut found = Vec::new();
        // A marker is drawn at every vertex; a path has fewer vertices than characters.
        let data = ["d", "points"].iter().filter_map(|name| node.attribute(*name)).map(str::len).max();
        let vertices = data.unwrap_or(0) as u64 / 2 + 2;
        for attribute in node.attributes() {
            if attribute.name() == "href" {
                found.extend(attribute.value().trim().strip_prefix('#').map(|id| (id, 1)));
            }
            let marks = attribute.name().starts_with("marker") || attribute.value().contains("marker");
            found.extend(targets(attribute.value()).map(|id| (id, if marks { vertices } else { 1 })));
        }
        for rule in &self.rules {
            if rule.selector.iter().any(|word| names(word, node)) {
                found.extend(rule.targets.iter().map(|id| (*id, vertices)));
            }
        }
        found
    }
}

fn check_depth(depth: usize) -> Result<(), Refusal> {
    if depth > MAX_DEPTH { Err(format!("nests elements more than {MAX_DEPTH} deep")) } else { Ok(()) }
}

/// The ids in all `url(#…)` of a text.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("url(").skip(1).filter_map(|rest| {
        let inside = rest.split(')').next()?.trim_matches([' ', '"', '\'', '\t', '\n', '\r']);
        inside.strip_prefix('#')
    })
}

/// The rules of a style sheet that refer to something.
fn rules(sheet: &str) -> impl Iterator<Item = Rule<'_>> {
    sheet.split('}').filter_map(|rule| {
        let (selector, body) = rule.split_once('{')?;
        let targets: Vec<&str> = targets(body).collect();
        let word = |c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_' | '*'));
        let selector = selector.split(word).filter(|word| !word.is_empty()).collect();
        (!targets.is_empty()).then_some(Rule { selector, targets })
    })
}

/// True where a selector with this word may select the element. Errs on the side of counting too much.
fn names(word: &str, node: Node<'_, '_>) -> bool {
    word == "*"
        || word == node.tag_name().name()
        || node.attribute("id") == Some(word)
        || node
            .attribute("class")
            .is_some_and(|classes| classes.split_whitespace().any(|class| class == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(inside: &str) -> Option<String> {
        let text = format!(r#"<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>"#);
        check(&Document::parse(&text).expect("XML")).err()
    }

    /// Levels that each refer to the one below `fan` times by `reference`.
    fn tower(levels: usize, fan: usize, reference: impl Fn(usize) -> String) -> String {
        let mut text = r#"<g id="l0"><rect width="1" height="1"/></g>"#.to_owned();
        for level in 1..=levels {
            text += &format!(r#"<g id="l{level}">{}</g>"#, reference(level - 1).repeat(fan));
        }
        text
    }

    #[test]
    fn a_tower_of_uses_is_refused() {
        let tower = |levels| tower(levels, 10, |below| format!(r##"<use href="#l{below}"/>"##));
        assert_eq!(refusal(&tower(2)), None);
        let message = refusal(&tower(9)).expect("refused");
        assert!(message.contains("unfolds to more than"), "{message}");
    }

    #[test]
    fn references_in_attributes_and_style_sheets_count() {
        let by_attribute = tower(9, 10, |below| format!(r##"<rect style="mask: url( '#l{below}' )"/>"##));
        assert!(refusal(&by_attribute).is_some());
        let sheet: String = (0..9).map(|level| format!(".c{level} {{ mask: url(#l{level}) }}\n")).collect();
        let by_class = tower(9, 10, |below| format!(r#"<rect class="c{below}"/>"#));
        assert_eq!(refusal(&by_class), None);
        assert!(refusal(&format!("<style>{sheet}</style>{by_class}")).is_some());
    }

    #[test]
    fn a_marker_counts_for_every_vertex() {
        let marker = tower(3, 10, |below| format!(r##"<use href="#l{below}"/>"##));
        let path = |points: usize| {
            format!(r##"{marker}<path marker-mid="url(#l3)" d="M0 0{}"/>"##, "h1".repeat(points))
        };
        assert_eq!(refusal(&path(4)), None);
        assert!(refusal(&path(400)).is_some());
    }

    #[test]
    fn cycles_and_deep_nesting_end() {
        assert_eq!(refusal(r##"<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>"##), None);
        let deep = format!("{}{}", "<g>".repeat(300), "</g>".repeat(300));
        assert!(refusal(&deep).expect("refused").contains("deep"));
        let chain = tower(150, 1, |below| format!(r##"<use href="#l{below}"/>"##));
        assert!(refusal(&chain).expect("refused").contains("deep"));
    }

    #[test]
    fn what_is_not_drawn_is_named() {
        assert!(refusal("<text>A</text>").expect("refused").contains("text"));
        assert!(refusal(r#"<image href="/etc/passwd"/>"#).expect("refused").contains("image"));
    }
}
