//! Recipes, from arbitrary bytes.
//!
//! Seeds: `recipes/*.toml`, `tests/fixtures/training/*/recipe.toml`.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nucleus_train::recipe::Recipe;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    match Recipe::parse(Path::new("dir/recipe.toml"), &text) {
        // A recipe that was read is right in itself: the last step has a stage, every stage a batch.
        Ok(recipe) => {
            let (last, fingerprint) = (recipe.stages.at(recipe.stages.steps()), recipe.fingerprint());
            assert_eq!(last.number + 1, recipe.stages.iter().count());
            assert!(recipe.stages.iter().all(|stage| stage.steps > 0 && stage.batch > 0 && stage.accumulate > 0));
            let again = Recipe::parse(Path::new("moved/recipe.toml"), &text).expect("it was read before");
            assert_eq!(fingerprint, again.fingerprint());
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("dir/recipe.toml:") && message.len() < 1 << 22, "{message}");
        }
    }
});
