//! The text form of plans: parser, verifier and printer, from arbitrary bytes.
//!
//! Seeds: `*.plan` files that `nucleusc compile --emit plan` writes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nucleus_plan::text::parse_plan;
use nucleus_plan::verify_plan;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    match parse_plan(&text) {
        Ok(plan) => {
            let verified = verify_plan(&plan);
            if let Err(errors) = &verified {
                assert!(errors.iter().all(|error| !error.to_string().is_empty()));
            }
            let printed = plan.to_string();
            let again = parse_plan(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
            assert_eq!(again, plan, "{printed}");
        }
        Err(error) => assert!(error.to_string().len() < 1 << 16),
    }
});
