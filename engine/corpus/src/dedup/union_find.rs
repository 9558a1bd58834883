//! Connected components of documents, by union-find (Tarjan 1975): 4 bytes a document.

/// A forest in which the root of every tree is its least element, so its first document.
pub struct UnionFind {
    parents: Vec<u32>,
}

impl UnionFind {
    /// `documents` components of one document each.
    pub fn new(documents: u32) -> Self {
        Self { parents: (0..documents).collect() }
    }

    /// The first document of the component, with the paths to it halved.
    pub fn find(&mut self, mut document: u32) -> u32 {
        loop {
            let parent = self.parents[document as usize];
            if parent == document {
                return document;
            }
            let grandparent = self.parents[parent as usize];
            self.parents[document as usize] = grandparent;
            document = grandparent;
        }
    }

    /// Joins the components of two documents.
    pub fn union(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }

    /// The first document of every document's component.
    pub fn into_firsts(mut self) -> Vec<u32> {
        // A parent comes before its children, so that it has its root already.
        for document in 0..self.parents.len() {
            self.parents[document] = self.parents[self.parents[document] as usize];
        }
        self.parents
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn components_are_the_transitive_closure(edges in prop::collection::vec((0_u32..30, 0_u32..30), 0..40)) {
            let mut labels: Vec<u32> = (0..30).collect();
            let mut forest = UnionFind::new(30);
            for &(a, b) in &edges {
                forest.union(a, b);
                let (a, b) = (labels[a as usize], labels[b as usize]);
                labels.iter_mut().filter(|label| **label == a.max(b)).for_each(|label| *label = a.min(b));
                prop_assert_eq!((0..30).map(|x| forest.find(x)).collect::<Vec<_>>(), labels.clone());
            }
            prop_assert_eq!(forest.into_firsts(), labels);
        }
    }

    #[test]
    fn a_long_chain_has_its_first_document_as_root() {
        let mut forest = UnionFind::new(100_000);
        (1..100_000).rev().for_each(|document| forest.union(document - 1, document));
        assert_eq!(forest.find(99_999), 0);
        assert!(forest.into_firsts().iter().all(|&first| first == 0));
        assert!(UnionFind::new(0).into_firsts().is_empty());
    }
}
